//! The NELBO of a text file under a model, in nats a token: windows of the context's length, one time
//! t and one corruption a window, averaged over several draws.
//!
//! ```sh
//! cargo run --release --example nelbo -- FILE [TAIL-PERCENT] [DRAWS] [MODEL]
//! ```

use lacuna::backend::Mask;
use lacuna::backend::cpu::Cpu;
use lacuna::diffusion::corrupt::corrupt_with;
use lacuna::diffusion::loss::Loss;
use lacuna::diffusion::{schedule, shift};
use lacuna::io::ModelFiles;
use lacuna::model::{Arena, ArenaSize, Batch, LoadOptions};
use lacuna::rng::Rng;
use lacuna::{Error, Model};

fn main() -> lacuna::Result<()> {
    let mut args = std::env::args().skip(1);
    let Some(file) = args.next() else {
        return Err(Error::Request("give a text file".into()));
    };
    let number = |arg: Option<String>, default: usize| arg.and_then(|a| a.parse().ok()).unwrap_or(default);
    let (tail, draws) = (number(args.next(), 100), number(args.next(), 4));
    let files = ModelFiles::find(args.next().as_deref())?;
    let no = |what: &str| Error::Request(format!("the model has no {what}"));
    let tokenizer = files.tokenizer.as_ref().ok_or_else(|| no("tokenizer"))?;
    let mask_id = files.special.mask.as_ref().ok_or_else(|| no("mask id"))?.id;
    let text = std::fs::read_to_string(&file).map_err(|e| Error::io("read", &file, e))?;
    let ids = tokenizer.encode(&text)?;
    let ids = &ids[ids.len() - ids.len() * tail.min(100) / 100..];

    let model = Model::load(Cpu::<f32>::new(None)?, &files, LoadOptions::default())?;
    let length = model.config().max_positions.min(512);
    let size = ArenaSize { tokens: length, rows: length };
    let mut arena = Arena::new(model.backend(), model.config(), size, length)?;
    let mut batch = Batch::with_capacity(size, 1);
    let rng = Rng::new(0);
    let mut estimates = Vec::new();
    let mut unweighted = 0.0;
    for draw in 0..draws as u32 {
        let mut loss = Loss::default();
        for (n, window) in ids.chunks_exact(length).enumerate() {
            let t = schedule::draw_time(&rng, n as u32, draw);
            let fixed = vec![false; length];
            let corrupted = corrupt_with(&rng, n as u32, draw, window, &fixed, t, mask_id)?;
            let scored: Vec<_> = shift::predicted(&corrupted.masked, model.shift()).collect();
            let targets: Vec<u32> = scored.iter().map(|(_, position)| window[*position]).collect();
            batch.clear();
            batch.push(&corrupted.ids, scored.iter().map(|(row, _)| *row as u32));
            model.forward(&batch, &mut arena, Mask::Full)?;
            let maskable = length - shift::first_predicted(model.shift());
            loss.add(t, model.nll(&targets, &mut arena)?, maskable);
        }
        estimates.push(loss.nelbo());
        unweighted += loss.unweighted() / draws as f64;
    }
    let n = estimates.len() as f64;
    let mean = estimates.iter().sum::<f64>() / n;
    let variance = estimates.iter().map(|e| (e - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    println!(
        "{} tokens, {draws} draws: NELBO {mean:.3} +- {:.3} nats a token (standard error), unweighted {unweighted:.3}",
        ids.len(),
        (variance / n).sqrt()
    );
    Ok(())
}
