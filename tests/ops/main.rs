//! The operations of the CPU backend, judged by [`naive`].

mod activation;
mod attention;
mod embedding;
mod head;
mod matmul;
mod naive;
mod norm;
mod optim;
mod rope;
mod support;
mod unmask;
