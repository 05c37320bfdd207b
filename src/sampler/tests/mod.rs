mod block;
mod draws;
mod refusals;
mod uniform;
mod infilling;
