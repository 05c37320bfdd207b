//! What training needs of texts before and after: a tokenizer, held-out excerpts.

use crate::train::data::read_documents;
use crate::train::folder::{replace, replaceable};
use crate::train::tokenizer;
use anyhow::{Context, Result};
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct TokenizerArgs {
    /// Text files, or folders of .txt files; only their first 95 % are read.
    #[arg(long, required = true, num_args = 1..)]
    text: Vec<PathBuf>,
    /// More texts, of which only a share joins (see --extra-share).
    #[arg(long, num_args = 1..)]
    extra: Vec<PathBuf>,
    /// The share of every extra text that joins.
    #[arg(long, default_value_t = 0.25)]
    extra_share: f64,
    /// Rows of the network's vocabulary: pieces, end of text and mask.
    #[arg(long, default_value_t = 1024)]
    vocab: usize,
    /// Where to write tokenizer.json.
    #[arg(long)]
    out: PathBuf,
}

#[derive(Args, Debug)]
pub struct HeldOutArgs {
    #[arg(long, required = true, num_args = 1..)]
    text: Vec<PathBuf>,
    /// Folder for the excerpts, NAME.txt each.
    #[arg(long)]
    out: PathBuf,
    /// Longest excerpt in bytes; longer held-out parts are cut at a line end.
    #[arg(long, default_value_t = 53_000)]
    max_bytes: usize,
}

pub fn run_tokenizer(args: TokenizerArgs) -> Result<()> {
    replaceable(&args.out).context("--out")?;
    let mut texts: Vec<String> = read_documents(&args.text)?
        .into_iter()
        .map(|d| d.training)
        .collect();
    for document in read_documents(&args.extra)? {
        let mut text = document.training;
        let mut keep = (text.len() as f64 * args.extra_share.clamp(0.0, 1.0)) as usize;
        while !text.is_char_boundary(keep) {
            keep += 1;
        }
        text.truncate(keep);
        texts.push(text);
    }
    let json = tokenizer::train(&texts, args.vocab)?;
    replace(&args.out, json.as_bytes())?;
    let pieces = tokenizer::from_json(&json)?.get_vocab_size(true);
    println!(
        "{}: {pieces} pieces from {} texts",
        args.out.display(),
        texts.len()
    );
    Ok(())
}

pub fn run_held_out(args: HeldOutArgs) -> Result<()> {
    std::fs::create_dir_all(&args.out)?;
    for document in read_documents(&args.text)? {
        let mut text = document.held_out.as_str();
        // The cut between training and held-out part may fall into a line: begin with a whole one.
        text = text.split_once('\n').map_or(text, |(_, rest)| rest);
        if text.len() > args.max_bytes {
            let mut end = args.max_bytes;
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            text = text[..end]
                .rsplit_once('\n')
                .map_or(&text[..end], |(head, _)| head);
        }
        let file = args.out.join(format!("{}.txt", document.name));
        replace(&file, text.as_bytes())?;
        println!("{}: {} bytes", file.display(), text.len());
    }
    Ok(())
}
