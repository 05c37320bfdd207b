mod block;
mod filter;
