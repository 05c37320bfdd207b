mod block;
mod draws;
mod infilling;
mod refusals;
mod resuming;
mod uniform;
