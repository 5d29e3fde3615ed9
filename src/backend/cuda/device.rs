//! The device interface: memory, copies, launches by kernel name, graphs, events. Two machines implement it, an
//! NVIDIA card through its driver ([`super::driver`]) and the host SIMT machine (`super::simt`, feature
//! `simt`), so that everything above it, launch geometry and pointer arithmetic included, runs on both.

use std::sync::Arc;

pub use super::counts::Counts;
pub(crate) use super::counts::{Counters, count};
use super::gemm::GemmLibrary;
pub(crate) use super::launch::kernel_for;
pub use super::launch::{Access, Argument, Launch, MAX_ARGUMENTS};
use crate::element::{Dtype, StoredTensor};
use crate::error::{Error, Result};

/// What a device is.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Most bytes of shared memory a block may ask for.
    pub shared_per_block: u32,
    /// The driver's CUDA version, major and minor; `None` without one.
    pub driver: Option<(u32, u32)>,
}

/// A machine that runs kernels. Work is done in the order in which it was asked for, on one stream.
pub trait Device: Clone + Send + Sync + 'static {
    /// An allocation; freed on drop.
    type Memory: Send + Sync;
    /// A recorded sequence of launches.
    type Graph: Send;
    /// A point in the stream.
    type Event: Send;

    fn facts(&self) -> &Facts;
    /// Whether a launch of kernel `name` can be had here: kernels for one generation of cards (`NAME_sm90`) are not everywhere.
    fn has_kernel(&self, name: &str) -> bool;
    /// `bytes` bytes of memory, aligned to 16 at least. Debug builds and the SIMT machine fill them with 0xff, which is NaN in
    /// every format.
    ///
    /// # Errors
    /// [`Error::Memory`] when they are not to be had.
    fn allocate(&self, bytes: usize) -> Result<Self::Memory>;
    /// The device address of an allocation.
    fn address(memory: &Self::Memory) -> u64;
    /// Copies `src` to byte `at` of `dst`; on return `src` has been read. Refused while a graph is recorded, as are
    /// `download`, and on cards everything but launches and fills.
    fn upload(&self, dst: &Self::Memory, at: usize, src: &[u8]) -> Result<()>;
    /// Copies `src` to byte `at` of `dst`; on return `src` has been read, and the copy may still be under way: later work on the
    /// stream sees it. On a card by way of pinned memory, so that nothing waits as long as there is room in it.
    fn send(&self, dst: &Self::Memory, at: usize, src: &[u8]) -> Result<()>;
    /// Copies from byte `at` of `src`; waits for what was asked for before.
    fn download(&self, src: &Self::Memory, at: usize, dst: &mut [u8]) -> Result<()>;
    /// Fills `bytes` bytes from byte `at` on.
    fn fill(&self, dst: &Self::Memory, at: usize, bytes: usize, value: u8) -> Result<()>;
    /// Starts a kernel.
    ///
    /// # Errors
    /// [`Error::Device`] when the kernel does not exist, the launch is refused, or (SIMT) a fault was found.
    ///
    /// # Safety
    /// The arguments fit the kernel's contract: with these sizes and strides it touches nothing beyond the parts of
    /// buffers that they name.
    unsafe fn launch(&self, launch: &Launch<'_>) -> Result<()>;
    /// The vendor's library for matrix products, if there is one here: cuBLASLt, found at run time.
    ///
    /// # Errors
    /// [`Error::Device`] that says what was looked for and why it will not do; [`Error::Memory`] when there is none left for
    /// its workspace.
    fn gemm_library(&self) -> Result<Arc<dyn GemmLibrary>>;
    /// Bytes of memory that are free.
    fn free_memory(&self) -> Result<u64>;
    /// What was asked for since the device was opened.
    fn counts(&self) -> Counts;
    /// Waits until all that was asked for is done.
    fn synchronize(&self) -> Result<()>;
    /// Records the launches and fills of `work` instead of doing them.
    fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Self::Graph>;
    /// Does what was recorded.
    ///
    /// # Safety
    /// The buffers that the recorded work names are still there, and no one else uses them.
    unsafe fn replay(&self, graph: &Self::Graph) -> Result<()>;
    /// Marks this point of the stream.
    fn record(&self) -> Result<Self::Event>;
    /// Milliseconds between two points; waits for the later one.
    fn elapsed_ms(&self, from: &Self::Event, to: &Self::Event) -> Result<f32>;
}

/// What the numbers in a buffer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    Float(Dtype),
    U32,
    U64,
    /// Sums; activations are [`Dtype`]s.
    F64,
    U8,
}

impl Format {
    /// Bytes of one number.
    pub const fn size(self) -> usize {
        match self {
            Format::Float(dtype) => dtype.size(),
            Format::U32 => 4,
            Format::U64 | Format::F64 => 8,
            Format::U8 => 1,
        }
    }
}

impl From<Dtype> for Format {
    fn from(dtype: Dtype) -> Self {
        Format::Float(dtype)
    }
}

/// A flat buffer of numbers on a device.
pub struct Buffer<D: Device> {
    memory: Arc<D::Memory>,
    /// Of the memory, where the buffer begins.
    first_byte: usize,
    format: Format,
    len: usize,
}

impl<D: Device> std::fmt::Debug for Buffer<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} x {:?})", self.len, self.format)
    }
}

impl<D: Device> Buffer<D> {
    /// Room for `len` numbers, with nothing of use in it.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(device: &D, format: impl Into<Format>, len: usize) -> Result<Self> {
        let format = format.into();
        let bytes = len.checked_mul(format.size()).ok_or_else(|| Error::Memory {
            what: format!("a buffer of {len} numbers"),
            needed: len as u128 * format.size() as u128,
            limit: "which no device can provide".into(),
            hint: "use a shorter length, a smaller batch or a smaller model".into(),
        })?;
        Ok(Self { memory: Arc::new(device.allocate(bytes)?), first_byte: 0, format, len })
    }

    /// Another name for numbers `at .. at + len`, which lives on its own. What is written by one name is read by the other in
    /// the order of the stream; a kernel must not be given both where it writes.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are not so many.
    pub(crate) fn share(&self, at: usize, len: usize) -> Result<Self> {
        let end = at.saturating_add(len);
        if end > self.len {
            return Err(Error::Shape {
                op: "share",
                what: "numbers of the buffer",
                expected: end,
                got: self.len,
            });
        }
        let first_byte = self.first_byte + at * self.format.size();
        Ok(Self { memory: Arc::clone(&self.memory), first_byte, format: self.format, len })
    }

    /// [`share`](Self::share), of numbers of another format of the same size.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are not so many, or a number has another size.
    pub(crate) fn share_as(&self, format: impl Into<Format>, at: usize, len: usize) -> Result<Self> {
        let (format, shared) = (format.into(), self.share(at, len)?);
        if format.size() != shared.format.size() {
            let (expected, got) = (shared.format.size(), format.size());
            return Err(Error::Shape { op: "share", what: "bytes of a number", expected, got });
        }
        Ok(Self { format, ..shared })
    }

    /// A copy of numbers in their own format (`u32`, `f32`, `half::bf16`, ...).
    ///
    /// # Errors
    /// Those of [`Buffer::new`], and [`Error::Shape`] when `T` is not of the format's size.
    pub fn of<T: bytemuck::Pod>(device: &D, format: impl Into<Format>, numbers: &[T]) -> Result<Self> {
        let mut buffer = Self::new(device, format, numbers.len())?;
        buffer.write(device, 0, numbers)?;
        Ok(buffer)
    }

    /// A copy of `numbers`, rounded to `dtype` (to nearest even).
    ///
    /// # Errors
    /// Those of [`Buffer::new`].
    pub fn floats(device: &D, dtype: Dtype, numbers: &[f32]) -> Result<Self> {
        let mut buffer = Self::new(device, dtype, numbers.len())?;
        buffer.write_rounded(device, numbers)?;
        Ok(buffer)
    }

    /// [`write`](Self::write)s `numbers` to the start of a buffer of floats, rounded to its format (to nearest even).
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit, or it holds no floats.
    pub fn write_rounded(&mut self, device: &D, numbers: &[f32]) -> Result<()> {
        match self.format {
            Format::Float(Dtype::F16) => {
                let rounded: Vec<half::f16> = numbers.iter().map(|&x| half::f16::from_f32(x)).collect();
                self.write(device, 0, &rounded)
            }
            Format::Float(Dtype::Bf16) => {
                let rounded: Vec<half::bf16> = numbers.iter().map(|&x| half::bf16::from_f32(x)).collect();
                self.write(device, 0, &rounded)
            }
            Format::Float(Dtype::F32) => self.write(device, 0, numbers),
            other => {
                Err(Error::Shape { op: "write", what: "bytes of a float", expected: 4, got: other.size() })
            }
        }
    }

    /// A copy of a stored tensor in its own format; its bytes need not be aligned.
    ///
    /// # Errors
    /// Those of [`Buffer::new`].
    pub fn stored(device: &D, tensor: &StoredTensor) -> Result<Self> {
        let buffer = Self::new(device, tensor.dtype(), tensor.len())?;
        if !tensor.is_empty() {
            device.send(&buffer.memory, 0, tensor.bytes())?;
        }
        Ok(buffer)
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// The device address of number `at`.
    pub fn address(&self, at: usize) -> u64 {
        D::address(&self.memory) + (self.first_byte + at * self.format.size()) as u64
    }

    /// Overwrites numbers from number `at` on.
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit or are of another size.
    pub fn write<T: bytemuck::Pod>(&mut self, device: &D, at: usize, numbers: &[T]) -> Result<()> {
        let at = self.byte_range::<T>("write", at, numbers.len())?;
        if numbers.is_empty() {
            Ok(())
        } else {
            device.upload(&self.memory, at, bytemuck::cast_slice(numbers))
        }
    }

    /// [`write`](Self::write) that nobody waits for: see [`Device::send`].
    ///
    /// # Errors
    /// [`Error::Shape`] when they do not fit or are of another size.
    pub fn send<T: bytemuck::Pod>(&mut self, device: &D, at: usize, numbers: &[T]) -> Result<()> {
        let at = self.byte_range::<T>("send", at, numbers.len())?;
        if numbers.is_empty() { Ok(()) } else { device.send(&self.memory, at, bytemuck::cast_slice(numbers)) }
    }

    /// Copies numbers from number `at` on to the host.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are not so many or they are of another size.
    pub fn read<T: bytemuck::Pod>(&self, device: &D, at: usize, numbers: &mut [T]) -> Result<()> {
        let at = self.byte_range::<T>("read", at, numbers.len())?;
        if numbers.is_empty() {
            Ok(())
        } else {
            device.download(&self.memory, at, bytemuck::cast_slice_mut(numbers))
        }
    }

    /// All numbers of a buffer of floats, widened.
    ///
    /// # Errors
    /// [`Error::Shape`] when it holds no floats.
    pub fn to_f32(&self, device: &D) -> Result<Vec<f32>> {
        match self.format {
            Format::Float(Dtype::F32) => self.to_vec::<f32>(device),
            Format::Float(Dtype::F16) => {
                Ok(self.to_vec::<half::f16>(device)?.into_iter().map(half::f16::to_f32).collect())
            }
            Format::Float(Dtype::Bf16) => {
                Ok(self.to_vec::<half::bf16>(device)?.into_iter().map(half::bf16::to_f32).collect())
            }
            other => {
                Err(Error::Shape { op: "read", what: "bytes of a float", expected: 4, got: other.size() })
            }
        }
    }

    /// All numbers in their own format.
    ///
    /// # Errors
    /// [`Error::Shape`] when `T` is not of the format's size.
    pub fn to_vec<T: bytemuck::Pod>(&self, device: &D) -> Result<Vec<T>> {
        let mut numbers = vec![T::zeroed(); self.len];
        self.read(device, 0, &mut numbers)?;
        Ok(numbers)
    }

    /// Fills every byte with `value`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn fill(&mut self, device: &D, value: u8) -> Result<()> {
        let bytes = self.len * self.format.size();
        if bytes == 0 { Ok(()) } else { device.fill(&self.memory, self.first_byte, bytes, value) }
    }

    /// Fills every byte of numbers `at .. at + len` with `value`.
    ///
    /// # Errors
    /// [`Error::Shape`] when there are not so many; those of the device.
    pub fn fill_part(&mut self, device: &D, at: usize, len: usize, value: u8) -> Result<()> {
        self.share(at, len)?.fill(device, value)
    }

    fn byte_range<T>(&self, op: &'static str, at: usize, count: usize) -> Result<usize> {
        if size_of::<T>() != self.format.size() {
            let (expected, got) = (self.format.size(), size_of::<T>());
            return Err(Error::Shape { op, what: "bytes of a number", expected, got });
        }
        let end = at.saturating_add(count);
        if end > self.len {
            return Err(Error::Shape { op, what: "numbers of the buffer", expected: end, got: self.len });
        }
        Ok(self.first_byte + at * self.format.size())
    }
}
