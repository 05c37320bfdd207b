mod block;
mod filter;
mod uniform;
