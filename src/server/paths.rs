//! Which files of the server's own disk an operator may name.

use std::io;
use std::path::{Path, PathBuf};

/// The roots under which files may be named.
#[derive(Clone, Debug)]
pub enum Paths {
    /// Any file: where nobody but this machine's users reach the server.
    Any,
    /// Files under one of these, which are absolute and free of links; none where there are none.
    Under(Vec<PathBuf>),
}

/// Why a file may not be read. Nothing of it, and nothing of what lies beside it, is told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    #[error("the server reads no files of its own disk; --allow-path ROOT lets it")]
    NoRoots,
    #[error("it is no regular file, or folder of such, under a root that --allow-path names")]
    Outside,
    #[error("it is no regular file, or folder, that can be read")]
    NoFile,
}

impl Paths {
    /// # Errors
    /// A root that is not there.
    pub fn under(roots: &[PathBuf]) -> io::Result<Paths> {
        let roots = roots.iter().map(std::fs::canonicalize);
        Ok(Paths::Under(roots.collect::<Result<_, _>>()?))
    }

    /// The file or folder that is meant, free of links, and of links out of the roots within.
    ///
    /// # Errors
    /// See [`Forbidden`]: what lies outside cannot be told from what is not there.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf, Forbidden> {
        let error = match self {
            Paths::Any => Forbidden::NoFile,
            Paths::Under(roots) if roots.is_empty() => return Err(Forbidden::NoRoots),
            Paths::Under(_) => Forbidden::Outside,
        };
        let allowed = |found: &Path| match self {
            Paths::Any => true,
            Paths::Under(roots) => roots.iter().any(|root| found.starts_with(root)),
        };
        let inside = |folder: &Path| {
            let mut entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.all(|entry| match std::fs::canonicalize(entry.path()) {
                Ok(found) => allowed(&found),
                Err(_) => true, // what cannot be found cannot be read
            })
        };
        let found = std::fs::canonicalize(path).ok();
        found
            .filter(|found| allowed(found))
            .filter(|found| found.is_file() || found.is_dir() && inside(found))
            .ok_or(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_stay_under_their_roots() {
        let folder = tempfile::tempdir().expect("folder");
        let (root, outside) = (folder.path().join("root"), folder.path().join("secret"));
        fs::create_dir_all(root.join("inner")).expect("folder");
        fs::write(root.join("inner/file"), "x").expect("file");
        fs::write(&outside, "x").expect("file");
        symlink(&outside, root.join("out")).expect("link");
        symlink(root.join("inner/file"), root.join("in")).expect("link");
        let paths = Paths::under(std::slice::from_ref(&root)).expect("root");
        for good in ["inner/file", "in", "inner/../in"] {
            let found = paths.resolve(&root.join(good)).expect(good);
            assert!(found.ends_with("root/inner/file"), "{}", found.display());
        }
        let found = paths.resolve(&root.join("inner")).expect("a folder");
        assert!(found.ends_with("root/inner"), "{}", found.display());
        // A folder with a link that leads out is none.
        for bad in ["out", ".", "nothing", "../secret", "inner/file/x"] {
            let error = paths.resolve(&root.join(bad)).expect_err(bad);
            assert_eq!(error, Forbidden::Outside, "{bad}");
        }
        paths.resolve(Path::new("/dev/null")).expect_err("a device");
        let none = Paths::Under(Vec::new());
        let error = none.resolve(&root.join("in")).expect_err("no roots");
        assert_eq!(error, Forbidden::NoRoots);
        Paths::Any.resolve(&outside).expect("any file");
        Paths::Any.resolve(&root).expect("any folder");
        Paths::under(&[folder.path().join("nowhere")]).expect_err("no such root");
    }
}
