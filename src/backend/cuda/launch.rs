//! A launch, put together and checked on the host.

use std::marker::PhantomData;

use super::device::{Buffer, Device, Format};
use crate::error::{Error, Result};

/// What a kernel may do with an argument's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Access {
    Read = 0,
    /// It writes every byte.
    Write = 1,
    /// It reads, or leaves parts as they are.
    Update = 2,
}

/// One argument of a kernel, as its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Argument {
    pub bits: u64,
    /// 4 or 8.
    pub size: u32,
    /// For a pointer: name, bytes from there on that the kernel may touch, and how.
    pub memory: Option<(&'static str, u64, Access)>,
}

/// Most arguments of a kernel.
pub const MAX_ARGUMENTS: usize = 32;

/// A kernel with its geometry and arguments. Buffers are checked as they are added: the numbers that the kernel will
/// touch must lie in them.
#[derive(Clone, Debug)]
pub struct Launch<'a> {
    pub kernel: &'static str,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    arguments: [Argument; MAX_ARGUMENTS],
    count: usize,
    buffers: PhantomData<&'a mut ()>,
}

impl<'a> Launch<'a> {
    pub fn new(kernel: &'static str, grid: [usize; 3], threads: u32, shared: usize) -> Result<Self> {
        const LIMITS: [usize; 3] = [i32::MAX as usize, 65_535, 65_535];
        let mut small = [0; 3];
        for ((small, &blocks), limit) in small.iter_mut().zip(&grid).zip(LIMITS) {
            if blocks > limit {
                return Err(Error::Shape {
                    op: kernel,
                    what: "blocks of the grid",
                    expected: limit,
                    got: blocks,
                });
            }
            *small = blocks as u32;
        }
        let none = Argument { bits: 0, size: 8, memory: None };
        let shared = u32::try_from(shared).map_err(|_| Error::Shape {
            op: kernel,
            what: "bytes of shared memory",
            expected: u32::MAX as usize,
            got: shared,
        })?;
        let block = [threads, 1, 1];
        Ok(Self {
            kernel,
            grid: small,
            block,
            shared,
            arguments: [none; MAX_ARGUMENTS],
            count: 0,
            buffers: PhantomData,
        })
    }

    /// The arguments, in order.
    pub fn arguments(&self) -> &[Argument] {
        &self.arguments[..self.count]
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.grid.contains(&0)
    }

    /// The same launch for later: the buffers are no longer borrowed (see [`Device::replay`]).
    pub fn detached(&self) -> Launch<'static> {
        Launch { buffers: PhantomData, ..*self }
    }

    fn push(&mut self, argument: Argument) -> &mut Self {
        // Kernels have fewer parameters than this by far; one too many is refused by both devices, which count them.
        if let Some(slot) = self.arguments.get_mut(self.count) {
            *slot = argument;
        }
        self.count = (self.count + 1).min(MAX_ARGUMENTS);
        self
    }

    fn memory<D: Device>(
        &mut self,
        name: &'static str,
        buffer: &Buffer<D>,
        format: Format,
        at: usize,
        len: usize,
        access: Access,
    ) -> Result<&mut Self> {
        if buffer.format() != format {
            let (expected, got) = (format.size(), buffer.format().size());
            return Err(Error::Shape { op: self.kernel, what: name, expected, got });
        }
        let end = at.saturating_add(len);
        if end > buffer.len() {
            return Err(Error::Shape { op: self.kernel, what: name, expected: end, got: buffer.len() });
        }
        let bytes = (len * format.size()) as u64;
        Ok(self.push(Argument { bits: buffer.address(at), size: 8, memory: Some((name, bytes, access)) }))
    }

    /// A pointer to numbers `at .. at + len`, which the kernel reads.
    ///
    /// # Errors
    /// [`Error::Shape`] when they are not all in the buffer, or it holds another format.
    pub fn read<D: Device>(
        &mut self,
        name: &'static str,
        buffer: &'a Buffer<D>,
        format: impl Into<Format>,
        at: usize,
        len: usize,
    ) -> Result<&mut Self> {
        self.memory(name, buffer, format.into(), at, len, Access::Read)
    }

    /// A pointer to numbers `at .. at + len`, all of which the kernel writes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write<D: Device>(
        &mut self,
        name: &'static str,
        buffer: &'a mut Buffer<D>,
        format: impl Into<Format>,
        at: usize,
        len: usize,
    ) -> Result<&mut Self> {
        self.memory(name, buffer, format.into(), at, len, Access::Write)
    }

    /// A pointer to numbers `at .. at + len`, which the kernel changes, or writes parts of.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn update<D: Device>(
        &mut self,
        name: &'static str,
        buffer: &'a mut Buffer<D>,
        format: impl Into<Format>,
        at: usize,
        len: usize,
    ) -> Result<&mut Self> {
        self.memory(name, buffer, format.into(), at, len, Access::Update)
    }

    /// No buffer: a null pointer.
    pub fn null(&mut self) -> &mut Self {
        self.push(Argument { bits: 0, size: 8, memory: None })
    }

    /// A pointer that [`read`](Self::read)s, or null.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_or_null<D: Device>(
        &mut self,
        name: &'static str,
        buffer: Option<&'a Buffer<D>>,
        format: impl Into<Format>,
        at: usize,
        len: usize,
    ) -> Result<&mut Self> {
        match buffer {
            Some(buffer) => self.read(name, buffer, format, at, len),
            None => Ok(self.null()),
        }
    }

    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.push(Argument { bits: value.into(), size: 4, memory: None })
    }

    /// A size or a stride, as a 32-bit integer that is not negative.
    ///
    /// # Errors
    /// [`Error::Shape`] from 2^31 on.
    pub fn size(&mut self, name: &'static str, value: usize) -> Result<&mut Self> {
        if value > i32::MAX as usize {
            return Err(Error::Shape {
                op: self.kernel,
                what: name,
                expected: i32::MAX as usize,
                got: value,
            });
        }
        Ok(self.u32(value as u32))
    }

    pub fn f32(&mut self, value: f32) -> &mut Self {
        self.u32(value.to_bits())
    }

    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.push(Argument { bits: value, size: 8, memory: None })
    }
}

/// `"NAME_f32"`, `"NAME_f16"` or `"NAME_bf16"`: the kernel for activations of a format.
macro_rules! kernel_for {
    ($dtype:expr, $name:literal) => {
        match $dtype {
            $crate::element::Dtype::F32 => concat!($name, "_f32"),
            $crate::element::Dtype::F16 => concat!($name, "_f16"),
            $crate::element::Dtype::Bf16 => concat!($name, "_bf16"),
        }
    };
}
pub(crate) use kernel_for;
