mod block;
mod draws;
mod refusals;
mod resuming;
mod uniform;
mod infilling;
