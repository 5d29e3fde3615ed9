//! The gradient of embeddings.

use lacuna::Error;
use lacuna::backend::cpu::{Cpu, CpuElement};
use lacuna::backend::{Backend, Backward, Forward, Layout};
use lacuna::element::Dtype;

use crate::support::*;

const TOKENS: usize = 11;
const PLACES: usize = 7;

/// Rows named several times.
struct Case {
    rows: usize,
    width: usize,
    ids: Vec<u32>,
    places: Vec<u32>,
    dx: Vec<f64>,
}

impl Case {
    fn new(random: &mut Random, rows: usize, width: usize) -> Self {
        let ids = (0..rows).map(|_| random.below(TOKENS) as u32).collect();
        let places = (0..rows).map(|_| random.below(PLACES) as u32).collect();
        Case { rows, width, ids, places, dx: random.numbers(rows * width) }
    }

    /// The gradients of both tables, added `times` times.
    fn run<E: CpuElement>(&self, cpu: &Cpu<E>, times: usize) -> Vec<Vec<E>> {
        let (ids, places) = (index(cpu, &self.ids), index(cpu, &self.places));
        let dx = upload(cpu, &self.dx);
        let [mut table, mut second] = [TOKENS, PLACES].map(|n| cpu.alloc(n * self.width).unwrap());
        for _ in 0..times {
            let (table, second) = ((&mut table, TOKENS, &ids), (&mut second, PLACES, &places));
            cpu.embed_backward(&dx, self.rows, self.width, Some(table), Some(second)).unwrap();
        }
        vec![table.as_slice().to_vec(), second.as_slice().to_vec()]
    }
}

#[test]
fn central_differences() {
    let mut random = Random::new(120);
    let cpu = fast::<f64>();
    for (rows, width) in [(1, 1), (23, 5), (9, 33)] {
        let case = Case::new(&mut random, rows, width);
        let (ids, places) = (index(&cpu, &case.ids), index(&cpu, &case.places));
        let loss = |table: &[f64], second: &[f64]| {
            let matrix = |count: usize, numbers: &[f64]| {
                let (tensor, same) = stored(Dtype::F32, &[count, width], numbers);
                assert_eq!(numbers, same, "a step exact in f32");
                cpu.matrix(&tensor, Layout::OutIn).unwrap()
            };
            let (table, second) = (matrix(TOKENS, table), matrix(PLACES, second));
            let mut out = poisoned(&cpu, rows * width);
            cpu.embed(&table, &ids, Some((&second, &places)), rows, width, &mut out).unwrap();
            dot(&case.dx, out.as_slice())
        };
        let [table, second] = [TOKENS, PLACES].map(|n| random.numbers(n * width));
        let g = case.run(&cpu, 1);
        let what = format!("{rows} x {width}");
        assert_gradient(&table, &g[0], &what, |table| loss(table, &second));
        assert_gradient(&second, &g[1], &what, |second| loss(&table, second));
    }
}

#[test]
fn same_bits_for_any_threads_and_instructions() {
    let mut random = Random::new(121);
    for (rows, width) in [(0, 5), (1, 1), (61, 33), (300, 577)] {
        let case = Case::new(&mut random, rows, width);
        assert_agrees(&format!("{rows} x {width}"), |cpu| case.run(cpu, 1), |cpu| case.run(cpu, 1));
    }
}

#[test]
fn tables_are_added_to_in_the_order_of_rows() {
    let mut random = Random::new(122);
    let case = Case::new(&mut random, 90, 41);
    let mut tables = [vec![0.0_f32; TOKENS * 41], vec![0.0; PLACES * 41]];
    for _ in 0..2 {
        for (table, ids) in tables.iter_mut().zip([&case.ids, &case.places]) {
            for (t, &id) in ids.iter().enumerate() {
                for j in 0..41 {
                    table[id as usize * 41 + j] += case.dx[t * 41 + j] as f32;
                }
            }
        }
    }
    for (out, expected) in case.run(&fast::<f32>(), 2).iter().zip(&tables) {
        assert_same(out, expected, "added twice");
    }
    // Either alone.
    let cpu = fast::<f64>();
    let (dx, ids) = (upload(&cpu, &case.dx), index(&cpu, &case.ids));
    let [mut first, mut second] = [0, 1].map(|_| cpu.alloc(TOKENS * 41).unwrap());
    cpu.embed_backward(&dx, 90, 41, Some((&mut first, TOKENS, &ids)), None).unwrap();
    cpu.embed_backward(&dx, 90, 41, None, Some((&mut second, TOKENS, &ids))).unwrap();
    assert_same(first.as_slice(), &case.run(&cpu, 1)[0], "tokens alone");
    assert_same(second.as_slice(), first.as_slice(), "positions alone");
}

#[test]
fn ids_and_shapes_out_of_range_are_errors() {
    let cpu = fast::<f32>();
    let dx = upload(&cpu, &[1.0; 6]);
    let (good, bad) = (index(&cpu, &[0, 3]), index(&cpu, &[0, 4]));
    let mut table = poisoned(&cpu, 12);
    let result = cpu.embed_backward(&dx, 2, 3, Some((&mut table, 4, &bad)), None);
    assert!(matches!(&result, Err(Error::Request(m)) if m.contains("token id")), "{result:?}");
    let result = cpu.embed_backward(&dx, 2, 3, None, Some((&mut table, 4, &bad)));
    assert!(matches!(&result, Err(Error::Request(m)) if m.contains("position")), "{result:?}");
    for (rows, width, count) in [(3, 3, 4), (2, 4, 3), (2, 3, 3), (2, 3, 5), (usize::MAX, 3, 4), (3, 2, 6)] {
        let result = cpu.embed_backward(&dx, rows, width, Some((&mut table, count, &good)), None);
        assert!(matches!(result, Err(Error::Shape { op: "embed_backward", .. })), "{result:?}");
        let result = cpu.embed_backward(&dx, rows, width, None, Some((&mut table, count, &good)));
        assert!(matches!(result, Err(Error::Shape { op: "embed_backward", .. })), "{result:?}");
    }
    assert!(table.as_slice().iter().all(|x| x.is_nan()), "nothing is written");
}
