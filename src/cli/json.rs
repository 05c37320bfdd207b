//! `--json` of what measures: instead of a table, or beside it.

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Stands for standard output.
const PRINTED: &str = "-";

#[derive(Args, Debug)]
pub struct JsonArgs {
    /// Print one JSON document instead of text; with FILE, write it there and print the text.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = PRINTED)]
    json: Option<PathBuf>,
}

impl JsonArgs {
    /// Refuses, before long work, a file that could not be written after it.
    pub fn check(&self) -> Result<()> {
        match self.file() {
            Some(file) => {
                let open = File::options().create(true).append(true).open(file);
                open.map(drop).with_context(|| cannot(file))
            }
            None => Ok(()),
        }
    }

    /// Writes `report` to where it is wanted, and `text` unless the report was printed instead.
    pub fn report(&self, report: &impl Serialize, text: impl FnOnce()) -> Result<()> {
        let json = || serde_json::to_string_pretty(report);
        match self.file() {
            Some(file) => std::fs::write(file, json()?).with_context(|| cannot(file))?,
            None if self.json.is_some() => {
                println!("{}", json()?);
                return Ok(());
            }
            None => {}
        }
        text();
        Ok(())
    }

    fn file(&self) -> Option<&Path> {
        self.json
            .as_deref()
            .filter(|file| *file != Path::new(PRINTED))
    }
}

fn cannot(file: &Path) -> String {
    format!("--json {} cannot be written", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: JsonArgs,
        #[arg(long)]
        other: bool,
    }

    fn args(line: &[&str]) -> JsonArgs {
        Line::try_parse_from(["bench"].iter().chain(line))
            .expect("options")
            .args
    }

    #[test]
    fn a_report_is_printed_or_written_beside_the_text() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("report.json");
        let path = file.to_str().expect("path");
        for (line, told, written) in [
            (&[][..], true, false),
            (&["--json", "--other"], false, false),
            (&["--json", path], true, true),
        ] {
            let (args, mut said) = (args(line), false);
            args.check().expect("writable");
            args.report(&[1, 2], || said = true).expect("report");
            assert_eq!((said, file.exists()), (told, written), "{line:?}");
        }
        let found: Vec<u8> =
            serde_json::from_slice(&std::fs::read(&file).expect("file")).expect("json");
        assert_eq!(found, [1, 2]);
        let error = args(&["--json", "/no/such/folder/file"])
            .check()
            .expect_err("refused");
        assert!(error.to_string().contains("--json"), "{error}");
    }
}
