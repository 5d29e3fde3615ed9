//! Tiles of the products of `cuda/matmul.cu`, and which of them suits a size.

use super::kernel_for;
use crate::backend::Layout;
use crate::element::Dtype;

/// The tile of a block, rows x columns, in 16-bit formats. It has no influence on the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tile {
    /// 128 x 128.
    Large,
    /// 64 x 128.
    Medium,
    /// 64 x 64.
    Small,
    /// 16 x 32, with more of the weight under way.
    Few,
    /// 64 x 64, for rows that do not begin on 16 bytes.
    Any,
}

pub(super) struct Shape {
    pub rows: usize,
    pub columns: usize,
    pub threads: u32,
    /// Bytes of shared memory.
    pub shared: usize,
}

/// Of the kernels in f32.
pub(super) const F32_SHAPE: Shape = Shape { rows: 64, columns: 64, threads: 256, shared: 64 * 72 * 4 };

impl Tile {
    /// As in `cuda/matmul.cu`.
    pub(super) const fn shape(self) -> Shape {
        match self {
            Tile::Large => Shape { rows: 128, columns: 128, threads: 128, shared: 73_728 },
            Tile::Medium => Shape { rows: 64, columns: 128, threads: 128, shared: 49_152 },
            Tile::Small | Tile::Any => Shape { rows: 64, columns: 64, threads: 128, shared: 32_768 },
            Tile::Few => Shape { rows: 16, columns: 32, threads: 64, shared: 49_152 },
        }
    }

    /// The tile with which the multiprocessor that has most to do has least to do. The factors say how much longer a
    /// smaller tile takes for the same work: a guess, between not at all and as its reads of shared memory for a
    /// multiplication, 4 : 6 : 8.
    pub(super) fn choose(rows: usize, columns: usize, multiprocessors: u32) -> Self {
        if rows <= Tile::Few.shape().rows {
            return Tile::Few;
        }
        Self::choose_of_many(rows, columns, multiprocessors)
    }

    /// The same without [`Tile::Few`].
    pub(super) fn choose_of_many(rows: usize, columns: usize, multiprocessors: u32) -> Self {
        let cost = |tile: Tile, factor: usize| {
            let Shape { rows: height, columns: width, .. } = tile.shape();
            let tiles = rows.div_ceil(height).saturating_mul(columns.div_ceil(width));
            tiles.div_ceil(multiprocessors.max(1) as usize).saturating_mul(height * width * factor)
        };
        let costs = [(Tile::Large, 4), (Tile::Medium, 5), (Tile::Small, 6)];
        costs
            .into_iter()
            .map(|(tile, factor)| (cost(tile, factor), tile))
            .min_by_key(|c| c.0)
            .map_or(Tile::Large, |c| c.1)
    }

    pub(super) fn kernel(self, dtype: Dtype, layout: Layout) -> &'static str {
        match (layout, self) {
            (Layout::OutIn, Tile::Large) => kernel_for!(dtype, "matmul_nt_large"),
            (Layout::OutIn, Tile::Medium) => kernel_for!(dtype, "matmul_nt_medium"),
            (Layout::OutIn, Tile::Small) => kernel_for!(dtype, "matmul_nt_small"),
            (Layout::OutIn, Tile::Few) => kernel_for!(dtype, "matmul_nt_few"),
            (Layout::OutIn, Tile::Any) => kernel_for!(dtype, "matmul_nt_any"),
            (Layout::InOut, Tile::Large) => kernel_for!(dtype, "matmul_nn_large"),
            (Layout::InOut, Tile::Medium) => kernel_for!(dtype, "matmul_nn_medium"),
            (Layout::InOut, Tile::Small) => kernel_for!(dtype, "matmul_nn_small"),
            (Layout::InOut, Tile::Few) => kernel_for!(dtype, "matmul_nn_few"),
            (Layout::InOut, Tile::Any) => kernel_for!(dtype, "matmul_nn_any"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Tile;

    #[test]
    fn tiles_fill_the_card() {
        assert_eq!(Tile::choose(1, 50_257, 132), Tile::Few);
        assert_eq!(Tile::choose(17, 768, 132), Tile::Small);
        assert_eq!(Tile::choose(8192, 8192, 132), Tile::Large);
        assert_eq!(Tile::choose(1024, 768, 132), Tile::Medium);
    }
}
