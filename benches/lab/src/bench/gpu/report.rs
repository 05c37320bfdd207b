//! Figures, printed as soon as they are known and kept for a file.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

pub struct Report {
    path: Option<PathBuf>,
    lines: Vec<Value>,
    /// Of the last line.
    header: (String, Vec<String>),
}

impl Report {
    pub fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            lines: Vec::new(),
            header: Default::default(),
        }
    }

    /// One measurement of a part: figures with their units.
    pub fn line(&mut self, part: &str, name: &str, figures: &[(&str, f64)]) {
        let units: Vec<String> = figures.iter().map(|(unit, _)| (*unit).to_owned()).collect();
        let header = (part.to_owned(), units);
        if self.header != header {
            let units = header.1.iter().map(|unit| format!("{unit:>21}"));
            println!("\n{part:44}{}", units.collect::<String>());
            self.header = header;
        }
        let values = figures.iter().map(|&(_, value)| match value.abs() {
            0.0..10.0 => format!("{value:21.3}"),
            _ => format!("{value:21.1}"),
        });
        println!("  {name:42}{}", values.collect::<String>());
        let mut line: Map<String, Value> = figures
            .iter()
            .map(|&(unit, value)| (unit.to_owned(), json!(value)))
            .collect();
        line.insert("part".to_owned(), json!(part));
        line.insert("name".to_owned(), json!(name));
        self.lines.push(line.into());
    }

    pub fn save(&self) -> Result<()> {
        let Some(path) = &self.path else {
            return Ok(());
        };
        let text = serde_json::to_string_pretty(&self.lines)?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}
