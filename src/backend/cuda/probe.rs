//! Launches of `cuda/probe.cu`.

use super::{Buffer, Cuda, Device, Format, Launch, product};
use crate::error::{Error, Result};

/// A probe: its kernel, its block, and the words of `a`, `b` and `out` that a block works on.
struct Probe {
    kernel: &'static str,
    threads: u32,
    /// Bytes of shared memory.
    shared: usize,
    a: usize,
    /// 0: it takes no `b`.
    b: usize,
    out: usize,
    /// Whether `out` is changed, not written.
    in_place: bool,
}

const fn probe(kernel: &'static str, threads: u32, shared: usize, a: usize, b: usize, out: usize) -> Probe {
    Probe { kernel, threads, shared, a, b, out, in_place: false }
}

const PROBES: [Probe; 19] = [
    probe("probe_ldmatrix", 32, 512, 128, 32, 128),
    probe("probe_ldmatrix_trans", 32, 512, 128, 32, 128),
    probe("probe_mma_f16", 32, 0, 128, 192, 128),
    probe("probe_mma_bf16", 32, 0, 128, 192, 128),
    probe("probe_tile_bf16", 32, 3 * 512, 128, 256, 512),
    probe("probe_cp_async", 128, 4 * 128 * 16, 2048, 128, 2048),
    probe("probe_load_streaming", 256, 0, 1024, 0, 1024),
    probe("probe_named_barrier", 128, 512, 128, 0, 128),
    probe("probe_reduce", 256, 32, 256, 0, 2048),
    probe("probe_shuffle", 32, 0, 32, 32, 320),
    probe("probe_vote", 32, 0, 32, 32, 32 * 18),
    probe("probe_atomics_shared", 256, 4 * (16 + 256), 256, 16, 16 + 256),
    Probe { in_place: true, ..probe("probe_atomics_global", 256, 0, 256, 0, 16 + 256) },
    probe("probe_exp2", 256, 0, 256, 0, 256),
    probe("probe_narrow", 256, 0, 256, 0, 768),
    probe("probe_widen", 256, 0, 256, 0, 512),
    probe("probe_philox", 256, 0, 256 * 6, 0, 256 * 9),
    probe("probe_arithmetic", 256, 0, 256 * 3, 0, 256 * 12),
    probe("probe_wide_arithmetic", 256, 0, 256 * 6, 0, 256 * 11),
];

impl<D: Device> Cuda<D> {
    /// Runs probe `name` of `cuda/probe.cu` with `blocks` blocks. All buffers hold U32 words; their layouts, a
    /// block's part of each, are described there.
    ///
    /// # Errors
    /// [`Error::Shape`] when there is no such probe, it takes a `b` and gets none, or a buffer is too short or of
    /// another format; those of the device.
    pub fn probe(
        &self,
        name: &str,
        blocks: usize,
        a: &Buffer<D>,
        b: Option<&Buffer<D>>,
        out: &mut Buffer<D>,
    ) -> Result<()> {
        let none = Error::Shape { op: "probe", what: "probes of this name", expected: 1, got: 0 };
        let probe = PROBES.iter().find(|p| p.kernel == name).ok_or(none)?;
        if blocks == 0 {
            return Ok(());
        }
        let op = probe.kernel;
        let mut launch = Launch::new(op, [blocks, 1, 1], probe.threads, probe.shared)?;
        launch.read("a", a, Format::U32, 0, product(op, "a", blocks, probe.a)?)?;
        match b {
            Some(b) if probe.b > 0 => {
                launch.read("b", b, Format::U32, 0, product(op, "b", blocks, probe.b)?)?
            }
            None if probe.b > 0 => {
                return Err(Error::Shape { op, what: "b", expected: blocks.saturating_mul(probe.b), got: 0 });
            }
            _ => launch.null(),
        };
        let total = product(op, "out", blocks, probe.out)?;
        if probe.in_place {
            launch.update("out", out, Format::U32, 0, total)?;
        } else {
            launch.write("out", out, Format::U32, 0, total)?;
        }
        // SAFETY: block i touches words `i n .. (i + 1) n` of each buffer, n as in the table, which is that of the
        // kernels; in place also the first 16 words of `out`.
        unsafe { self.launch(&launch) }
    }
}
