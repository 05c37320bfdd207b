mod block;
mod decoders;
mod draws;
mod infilling;
mod refusals;
mod resuming;
mod uniform;
