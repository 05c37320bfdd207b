//! How much memory there is: the machine's, or what a control group leaves of it.

use std::fs;
use std::path::Path;

/// More would be taken than there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "it takes about {} MiB of memory and {} MiB are free",
    needed >> 20,
    free >> 20
)]
pub struct NoRoom {
    pub needed: u64,
    pub free: u64,
}

/// # Errors
/// Where `needed` bytes are more than there are.
pub fn room(needed: u64) -> Result<(), NoRoom> {
    match available() {
        Some(free) if free < needed => Err(NoRoom { needed, free }),
        _ => Ok(()),
    }
}

/// Bytes that this process may still take: the least of what the machine has and what its control groups allow. `None` where the system
/// does not say.
pub fn available() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo");
    let machine = machine.ok().and_then(|text| meminfo(&text));
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    machine
        .into_iter()
        .chain(groups(Path::new("/sys/fs/cgroup"), &own))
        .min()
}

fn meminfo(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib << 10)
}

/// What the control groups of `own` (`/proc/self/cgroup`) leave, each and those above it.
fn groups(root: &Path, own: &str) -> Option<u64> {
    let of_line = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        let (root, files) = match controllers {
            "" => (root.to_path_buf(), VERSION_2),
            _ if controllers.split(',').any(|one| one == "memory") => {
                (root.join("memory"), VERSION_1)
            }
            _ => return None,
        };
        // In a container the path may be the host's, with this group mounted at the root.
        let own = root.join(path);
        let above = own
            .ancestors()
            .take_while(|folder| folder.starts_with(&root));
        above.filter_map(|folder| left(folder, files)).min()
    };
    own.lines().filter_map(of_line).min()
}

/// Limit, usage, and what of the usage are pages of files that nobody needs, in `memory.stat`.
const VERSION_2: [&str; 3] = ["memory.max", "memory.current", "inactive_file"];
const VERSION_1: [&str; 3] = [
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
];

fn left(folder: &Path, [limit, usage, unneeded]: [&str; 3]) -> Option<u64> {
    let number = |file: &str| -> Option<u64> {
        fs::read_to_string(folder.join(file))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let (limit, usage) = (number(limit)?, number(usage)?);
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
    let unneeded = lines.find(|(name, _)| *name == unneeded);
    let unneeded = unneeded
        .and_then(|(_, bytes)| bytes.trim().parse().ok())
        .unwrap_or(0);
    Some(limit.saturating_sub(usage.saturating_sub(unneeded)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_group_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("pod/container");
        fs::create_dir_all(&inner).unwrap();
        let write = |folder: &Path, limit: &str, usage: &str| {
            fs::write(folder.join("memory.max"), limit).unwrap();
            fs::write(folder.join("memory.current"), usage).unwrap();
        };
        write(&inner, "max\n", "5\n");
        assert_eq!(groups(root.path(), "0::/pod/container\n"), None);
        write(&root.path().join("pod"), "1000\n", "700\n");
        assert_eq!(groups(root.path(), "0::/pod/container\n"), Some(300));
        fs::write(
            root.path().join("pod/memory.stat"),
            "anon 1\ninactive_file 200\n",
        )
        .unwrap();
        assert_eq!(groups(root.path(), "0::/pod/container\n"), Some(500));
        write(&inner, "600\n", "550\n");
        assert_eq!(groups(root.path(), "0::/pod/container\n"), Some(50));
        write(root.path(), "90\n", "89\n");
        assert_eq!(groups(root.path(), "0::/somewhere/else\n"), Some(1));
    }

    #[test]
    fn memory_is_told_and_refused() {
        assert_eq!(
            meminfo("MemTotal: 9 kB\nMemAvailable:    12 kB\n"),
            Some(12 << 10)
        );
        assert_eq!(room(1), Ok(()));
        let error = room(u64::MAX).unwrap_err();
        assert!(
            error.free > 0 && error.to_string().contains("are free"),
            "{error}"
        );
    }
}
