mod block;
mod filter;
mod refusals;
mod uniform;
mod infilling;
