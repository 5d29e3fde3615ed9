//! The operations of the CPU backend, judged by [`naive`].

mod activation;
mod attention;
mod attention_bwd;
mod elementwise_bwd;
mod embedding;
mod embedding_bwd;
mod head;
mod head_bwd;
mod matmul;
mod matmul_bwd;
mod naive;
mod norm;
mod norm_bwd;
mod optim;
mod optim_control;
mod optim_q8;
mod rope;
mod support;
mod unmask;
