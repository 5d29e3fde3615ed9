//! Embedding, gather, scatter; buffers and the pool.

use std::num::NonZeroUsize;

use lacuna::Error;
use lacuna::backend::cpu::{Cpu, CpuElement, MAX_THREADS};
use lacuna::backend::{Backend, Forward, Layout, Rows};
use lacuna::element::Dtype;

use crate::support::*;

fn embed<E: CpuElement>() {
    let mut random = Random::new(50);
    for level in levels() {
        let cpu = backend::<E>(2, level);
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for (rows, width) in [(1, 1), (7, 33), (61, 16), (129, 1030)] {
                let (table, numbers) = stored(dtype, &[37, width], &random.numbers(37 * width));
                let (places, place_numbers) = stored(dtype, &[19, width], &random.numbers(19 * width));
                let ids: Vec<u32> = (0..rows).map(|_| random.below(37) as u32).collect();
                let positions: Vec<u32> = (0..rows).map(|_| random.below(19) as u32).collect();
                let table = cpu.matrix(&table, Layout::OutIn).unwrap();
                let places = cpu.matrix(&places, Layout::OutIn).unwrap();
                let (i, p) = (index(&cpu, &ids), index(&cpu, &positions));
                for with_positions in [false, true] {
                    let mut out = poisoned(&cpu, rows * width);
                    let second = with_positions.then_some((&places, &p));
                    cpu.embed(&table, &i, second, rows, width, &mut out).unwrap();
                    for t in 0..rows {
                        for j in 0..width {
                            let mut expected = E::from_f64(numbers[ids[t] as usize * width + j]);
                            if with_positions {
                                expected += E::from_f64(place_numbers[positions[t] as usize * width + j]);
                            }
                            assert_eq!(out.as_slice()[t * width + j], expected, "{dtype} {level}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn embed_is_exact_f32() {
    embed::<f32>();
}

#[test]
fn embed_is_exact_f64() {
    embed::<f64>();
}

#[test]
fn embed_refuses_ids_and_shapes_out_of_range() {
    let cpu = fast::<f32>();
    let (table, _) = stored(Dtype::F32, &[4, 3], &[1.0; 12]);
    let matrix = cpu.matrix(&table, Layout::OutIn).unwrap();
    let transposed = cpu.matrix(&table, Layout::InOut).unwrap();
    let (good, bad) = (index(&cpu, &[0, 3]), index(&cpu, &[0, 4]));
    let mut out = poisoned(&cpu, 6);
    let bad_id = cpu.embed(&matrix, &bad, None, 2, 3, &mut out);
    assert!(
        matches!(&bad_id, Err(Error::Request(m)) if m.contains("token id") && m.contains('4')),
        "{bad_id:?}"
    );
    let bad_place = cpu.embed(&matrix, &good, Some((&matrix, &bad)), 2, 3, &mut out);
    assert!(matches!(&bad_place, Err(Error::Request(m)) if m.contains("position")), "{bad_place:?}");
    for result in [
        cpu.embed(&matrix, &good, None, 3, 3, &mut out),
        cpu.embed(&matrix, &good, None, 2, 4, &mut out),
        cpu.embed(&transposed, &good, None, 2, 4, &mut out),
        cpu.embed(&matrix, &good, None, 2, 3, &mut poisoned(&cpu, 5)),
    ] {
        assert!(matches!(result, Err(Error::Shape { op: "embed", .. })), "{result:?}");
    }
    assert!(out.as_slice().iter().all(|x| x.is_nan()), "nothing is written");
}

#[test]
fn gather_and_scatter_move_the_rows_named() {
    let mut random = Random::new(51);
    let cpu = fast::<f32>();
    for (count, width) in [(1, 1), (7, 33), (300, 600), (0, 5)] {
        let from = Rows { at: 4, stride: width + 2 };
        let src_rows = 90;
        let numbers = random.numbers(4 + src_rows * from.stride);
        let src = upload(&cpu, &numbers);
        let rows: Vec<u32> = (0..count).map(|_| random.below(src_rows) as u32).collect();
        let row_index = index(&cpu, &rows);
        let mut dst = poisoned(&cpu, count * width);
        cpu.gather((&src, from), &row_index, count, width, &mut dst).unwrap();
        for (r, row) in rows.iter().enumerate() {
            let expected = &src.as_slice()[4 + *row as usize * from.stride..][..width];
            assert_same(&dst.as_slice()[r * width..(r + 1) * width], expected, "gather");
        }

        let to = Rows { at: 1, stride: width + 1 };
        let old = random.numbers(1 + src_rows * to.stride);
        let mut target = upload(&cpu, &old);
        cpu.scatter((&dst, Rows::dense(width)), &row_index, count, width, (&mut target, to)).unwrap();
        let mut expected = upload(&cpu, &old).as_slice().to_vec();
        for (r, row) in rows.iter().enumerate() {
            let from = &dst.as_slice()[r * width..(r + 1) * width];
            expected[1 + *row as usize * to.stride..][..width].copy_from_slice(from);
        }
        assert_same(target.as_slice(), &expected, "scatter");
    }
}

#[test]
fn gather_and_scatter_refuse_rows_out_of_range() {
    let cpu = fast::<f32>();
    let src = upload(&cpu, &[1.0; 12]);
    let rows = index(&cpu, &[0, 4]);
    let mut dst = poisoned(&cpu, 12);
    let dense = Rows::dense(3);
    for result in [
        cpu.gather((&src, dense), &rows, 2, 3, &mut dst),
        cpu.gather((&src, dense), &rows, 3, 3, &mut dst),
        cpu.gather((&src, Rows::dense(1)), &rows, 2, 7, &mut dst),
        cpu.scatter((&src, dense), &rows, 2, 3, (&mut dst, dense)),
        cpu.scatter((&src, Rows { at: 8, stride: 3 }), &rows, 2, 3, (&mut dst, Rows::dense(1))),
    ] {
        assert!(matches!(result, Err(Error::Shape { .. })), "{result:?}");
    }
    assert!(dst.as_slice().iter().all(|x| x.is_nan()), "nothing is written");
}

#[test]
fn buffers_check_their_ends() {
    let cpu = fast::<f64>();
    let buffer = upload(&cpu, &[1.0, 2.0, 3.0]);
    let mut two = [0.0; 2];
    cpu.read(&buffer, 1, &mut two).unwrap();
    assert_eq!(two, [2.0, 3.0]);
    assert!(matches!(cpu.read(&buffer, 2, &mut two), Err(Error::Shape { .. })));
    assert!(matches!(cpu.read(&buffer, usize::MAX, &mut two), Err(Error::Shape { .. })));
    let mut index = cpu.alloc_index(2).unwrap();
    assert!(matches!(cpu.write_index(&mut index, &[1, 2, 3]), Err(Error::Shape { .. })));
    cpu.write_index(&mut index, &[7]).unwrap();
    assert_eq!(index.as_slice(), [7, 0]);
    assert!(matches!(cpu.alloc(usize::MAX / 4), Err(Error::Memory { .. })));
    assert!(matches!(cpu.alloc(1 << 50), Err(Error::Memory { .. })));
    let empty = cpu.alloc(0).unwrap();
    assert_eq!((cpu.capacity(&empty), empty.as_slice().len()), (0, 0));
    let (tensor, numbers) = stored(Dtype::Bf16, &[3], &[0.1, -2.0, 1e-3]);
    assert_eq!(cpu.vector(&tensor).unwrap().as_slice(), numbers);
}

#[test]
fn absurd_thread_counts_are_refused_before_any_thread_starts() {
    for threads in [MAX_THREADS + 1, 1_000_000_000, usize::MAX] {
        let refused = Cpu::<f32>::new(NonZeroUsize::new(threads));
        assert!(
            matches!(&refused, Err(Error::Request(m)) if m.contains(&threads.to_string())),
            "{refused:?}"
        );
    }
    assert_eq!(Cpu::<f32>::new(NonZeroUsize::new(3)).unwrap().threads(), 3);
}
