//! What the meter counts of a generation is what `profile::flops` says it takes. A test binary of its own, because there is
//! one meter for the process; one test, because tests of a binary run side by side.

mod common;

use lacuna::meter::{self, Measured, Track};
use lacuna::profile::{Account, By, pass};
use lacuna::sample::{Canvas, Generation, Limits, Request, Sampler};

const LENGTH: usize = 40;

fn generate(dir: &str, order_ar: bool) -> (Generation, Option<Measured>, lacuna::config::ModelConfig) {
    let model = common::load(&common::fixture(dir), 2);
    let config = model.config().clone();
    let mut request = Request::new(Canvas::prefix(&[1], LENGTH - 1));
    (request.mask_id, request.steps, request.stop_at_eos) = (Some(3), 16, false);
    request.autoregressive = order_ar;
    let mut sampler = Sampler::new(model, Limits { sequences: 1, tokens: LENGTH }).expect("memory");
    let generation = sampler.generate(&request).expect("a text");
    (generation, meter::stop(), config)
}

#[test]
fn operations_of_a_generation_are_counted() {
    for dir in ["golden/gpt2-tiny", "golden/llama-tiny"] {
        let (plain, nothing, _) = generate(dir, false);
        assert!(nothing.is_none());
        meter::start(usize::MAX);
        let (metered, measured, config) = generate(dir, false);
        let measured = measured.expect("it was on");
        assert_eq!(metered.ids, plain.ids, "{dir}: metering changes nothing");
        let account = Account::new(&measured, By::Op);
        let calls = |op: &str| account.rows.iter().find(|r| r.op == op).map_or(0, |r| r.total.calls as usize);
        let nfe = metered.nfe;
        assert_eq!([calls("embed"), calls("attention"), calls("commit")], [nfe, nfe * config.layers, nfe]);
        assert_eq!(calls("norm"), nfe * (2 * config.layers + 1));
        assert_eq!(calls("stage_step"), nfe);
        assert_eq!(calls("linear_backward_weight"), 0);
        // Each step's rows are the positions that it committed.
        let mut expected = 0.0;
        for step in 1..=16 {
            let rows = metered.committed_at.iter().filter(|&&at| at == step).count();
            if rows > 0 {
                expected += pass(&config, &[LENGTH], rows);
            }
        }
        assert_eq!(account.flops() as f64, expected, "{dir}");
        let ranges: Vec<(&str, u64)> = measured.ranges.iter().map(|(name, t)| (*name, t.calls)).collect();
        for (name, count) in [("generate", 1), ("denoising step", nfe), ("layer", nfe * config.layers)] {
            assert!(ranges.contains(&(name, count as u64)), "{name}: {ranges:?}");
        }
        let numbers: Vec<u32> = measured
            .events
            .iter()
            .filter(|e| e.op.name == "denoising step")
            .filter_map(|e| e.range)
            .collect();
        assert_eq!(numbers, (0..nfe as u32).collect::<Vec<_>>(), "{dir}: steps are told apart");
        // Nested as they were: every operation within the generation, one after the other.
        let whole = measured.events.iter().find(|e| e.op.name == "generate").expect("the range");
        let mut ops: Vec<_> = measured.events.iter().filter(|e| e.range.is_none()).collect();
        ops.sort_by_key(|e| e.from);
        assert!(ops.iter().all(|e| e.track == Track::Host && e.thread == whole.thread));
        for pair in ops.windows(2) {
            assert!(pair[0].from + pair[0].took <= pair[1].from, "{pair:?}");
        }
        let (first, last) = (ops[0], ops[ops.len() - 1]);
        assert!(first.from >= whole.from && last.from + last.took <= whole.from + whole.took);
        assert!(account.listed <= account.work && account.work <= account.wall);
    }
    // Left to right: a pass a token.
    meter::start(0);
    let (metered, measured, config) = generate("golden/llama-tiny", true);
    let account = Account::new(&measured.expect("it was on"), By::Op);
    let attention = account.rows.iter().find(|r| r.op == "attention").expect("attention");
    assert_eq!(attention.total.calls as usize, metered.nfe * config.layers);
    assert!(account.rows.iter().any(|r| r.op == "scatter"));
}
