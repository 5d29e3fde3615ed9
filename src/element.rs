//! Number formats: what activations are computed in ([`Element`]) and what weights are stored in
//! ([`Dtype`], [`StoredTensor`]).

use bytes::Bytes;

use crate::error::{Error, Result};

/// A floating-point type that activations are computed in. Implemented for `f32` (production) and
/// `f64` (the oracle of tests).
pub trait Element:
    num_traits::Float
    + num_traits::FloatConst
    + std::fmt::Debug
    + std::fmt::Display
    + std::iter::Sum
    + std::ops::AddAssign
    + std::ops::MulAssign
    + bytemuck::Pod
    + Default
    + Send
    + Sync
    + 'static
{
    /// "f32" or "f64".
    const NAME: &'static str;
    fn from_f32(x: f32) -> Self;
    fn from_f64(x: f64) -> Self;
    fn to_f32(self) -> f32;
    fn to_f64(self) -> f64;
}

macro_rules! element {
    ($t:ty, $name:literal) => {
        impl Element for $t {
            const NAME: &'static str = $name;
            #[inline(always)]
            fn from_f32(x: f32) -> Self {
                x as $t
            }
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                self as f32
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                self as f64
            }
        }
    };
}
element!(f32, "f32");
element!(f64, "f64");

/// A format in which a checkpoint stores numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F32,
    F16,
    Bf16,
}

impl Dtype {
    /// Bytes of one number.
    pub const fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// "f32", "f16" or "bf16".
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A tensor as a file holds it: row-major little-endian bytes, not necessarily aligned. Cheap to
/// clone; keeps the file map behind `bytes` alive.
#[derive(Clone)]
pub struct StoredTensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl StoredTensor {
    /// Wraps `bytes` as a tensor.
    ///
    /// # Errors
    /// [`Error::Shape`] when the byte count is not `product(shape) * dtype.size()`.
    pub fn new(dtype: Dtype, shape: Vec<usize>, bytes: Bytes) -> Result<Self> {
        let expected = shape.iter().try_fold(dtype.size(), |a, &d| a.checked_mul(d)).ok_or(Error::Shape {
            op: "tensor",
            what: "bytes",
            expected: usize::MAX,
            got: bytes.len(),
        })?;
        if expected != bytes.len() {
            return Err(Error::Shape { op: "tensor", what: "bytes", expected, got: bytes.len() });
        }
        Ok(Self { dtype, shape, bytes })
    }

    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The raw little-endian bytes; no alignment is promised.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Element `i` in row-major order, widened to f32 (exact).
    #[inline]
    pub fn get(&self, i: usize) -> f32 {
        let s = self.dtype.size();
        let b = &self.bytes[i * s..(i + 1) * s];
        match self.dtype {
            Dtype::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Dtype::F16 => half::f16::from_le_bytes([b[0], b[1]]).to_f32(),
            Dtype::Bf16 => half::bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        }
    }

    /// All elements, widened (exact).
    pub fn to_vec<E: Element>(&self) -> Vec<E> {
        (0..self.len()).map(|i| E::from_f32(self.get(i))).collect()
    }
}

impl std::fmt::Debug for StoredTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}
