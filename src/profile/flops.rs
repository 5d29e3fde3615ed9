//! Floating-point operations of matrix products and attention; what is linear in the width (norms, activations) is left out.

use crate::config::{Family, ModelConfig};

/// Of a forward pass over sequences of `lengths`, `rows` of whose rows leave the last block, with the logits of those rows:
/// what the engine computes. The last block's queries, attention, output and MLP are of those rows alone.
pub fn pass(config: &ModelConfig, lengths: &[usize], rows: usize) -> f64 {
    let tokens: f64 = lengths.iter().map(|&l| l as f64).sum();
    let squares: f64 = lengths.iter().map(|&l| (l as f64) * (l as f64)).sum();
    let (c, q, kv) = (config.width as f64, config.query_width() as f64, config.kv_width() as f64);
    let mlp = config.mlp_width as f64 * if config.family == Family::Llama { 3.0 } else { 2.0 };
    let (rows, layers) = (rows as f64, config.layers as f64);
    // A row's queries, output and MLP; its keys and values; what a query does with a key.
    let (own, shared, pair) = (2.0 * c * (2.0 * q + mlp), 2.0 * c * 2.0 * kv, 4.0 * q);
    let full = tokens * (own + shared) + squares * pair;
    let mean = if tokens > 0.0 { squares / tokens } else { 0.0 };
    let last = rows * own + tokens * shared + rows * mean * pair;
    let head = rows * 2.0 * c * config.vocab_size as f64;
    if config.layers == 0 { head } else { (layers - 1.0) * full + last + head }
}

/// Of a training step over sequences of `lengths`, `rows` of whose rows are scored: every block on every row, and twice as much
/// on the way back; without the gradients of weights (adapters, whose own operations are left out) once as much.
pub fn training(config: &ModelConfig, lengths: &[usize], rows: usize, weights: bool) -> f64 {
    let tokens: usize = lengths.iter().sum();
    let head = rows as f64 * 2.0 * config.width as f64 * config.vocab_size as f64;
    let all = tokens as f64 * 2.0 * config.width as f64 * config.vocab_size as f64;
    // Attention has two products on the way there and four on the way back, whatever is trained.
    let squares: f64 = lengths.iter().map(|&l| (l as f64) * (l as f64)).sum();
    let attention = config.layers as f64 * squares * 4.0 * config.query_width() as f64;
    let linear = pass(config, lengths, tokens) - all - attention + head;
    3.0 * attention + if weights { 3.0 } else { 2.0 } * linear
}

/// Of denoising `sequences` canvases of `length` of which `filled` positions each are filled, one row a position, in `nfe`
/// forward passes each.
pub fn generation(config: &ModelConfig, sequences: usize, length: usize, filled: usize, nfe: f64) -> f64 {
    let lengths = vec![length; sequences];
    // Linear in the rows: all rows of all passes, less what the rows of the other passes would be counted twice.
    let (none, all) = (pass(config, &lengths, 0), pass(config, &lengths, sequences * filled));
    nfe * none + (all - none)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::SyntheticShape;

    /// Twice the parameters of the matrices a token, and attention.
    #[test]
    fn a_whole_pass_is_twice_the_parameters_a_token() {
        for shape in [SyntheticShape::DiffuGptS, SyntheticShape::DiffuLlama7b] {
            let config = shape.config();
            let l = 512.0;
            let matrices: usize = crate::model::parameters_of(&config)
                .iter()
                .filter(|e| e.shape.len() == 2 && e.parameter != "positions" && e.parameter != "embedding")
                .map(|e| e.shape.iter().product::<usize>())
                .sum();
            let head = if config.tied { config.width * config.vocab_size } else { 0 };
            let attention = config.layers as f64 * 4.0 * l * l * config.query_width() as f64;
            let expected = 2.0 * l * (matrices + head) as f64 + attention;
            let got = pass(&config, &[512], 512);
            assert!((got / expected - 1.0).abs() < 1e-12, "{got} {expected}");
        }
    }

    #[test]
    fn a_generation_is_its_passes() {
        let config = SyntheticShape::DiffuGptM.config();
        let each = [7, 0, 30, 63];
        let sum: f64 = each.iter().map(|&rows| pass(&config, &[101, 101], 2 * rows)).sum();
        let got = generation(&config, 2, 101, 100, 4.0);
        assert!((got / sum - 1.0).abs() < 1e-12, "{got} {sum}");
    }
}
