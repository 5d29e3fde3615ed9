//! Flat, zeroed, cache-line-aligned memory.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::ptr::NonNull;

use bytemuck::Pod;

use crate::error::{Error, Result};

/// Alignment of every buffer, in bytes: one cache line, one AVX-512 register.
pub(super) const ALIGN: usize = 64;

/// A flat buffer of numbers in main memory, aligned to 64 bytes. Large buffers cost physical memory
/// only where they have been written.
pub struct Buffer<T: Pod> {
    start: NonNull<T>,
    len: usize,
}

impl<T: Pod> Buffer<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// [`Error::Memory`] when they do not fit.
    pub fn zeroed(len: usize) -> Result<Self> {
        let needed = (len as u128) * size_of::<T>() as u128;
        let refused = || Error::Memory {
            what: format!("a buffer of {len} numbers"),
            needed,
            limit: "which this machine cannot provide".into(),
            hint: "use a shorter length, a smaller batch or a smaller model".into(),
        };
        if needed == 0 {
            return Ok(Self { start: NonNull::dangling(), len });
        }
        let layout = Self::layout(len).ok_or_else(refused)?;
        // SAFETY: the layout's size is not zero (`needed` is not).
        let raw = unsafe { alloc_zeroed(layout) };
        let start = NonNull::new(raw.cast::<T>()).ok_or_else(refused)?;
        Ok(Self { start, len })
    }

    /// A copy of `src`.
    ///
    /// # Errors
    /// [`Error::Memory`] when it does not fit.
    pub fn from_slice(src: &[T]) -> Result<Self> {
        let mut buffer = Self::zeroed(src.len())?;
        buffer.as_mut_slice().copy_from_slice(src);
        Ok(buffer)
    }

    fn layout(len: usize) -> Option<Layout> {
        let bytes = len.checked_mul(size_of::<T>())?;
        Layout::from_size_align(bytes, ALIGN.max(align_of::<T>())).ok()
    }

    /// How many numbers it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All numbers.
    #[inline]
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: `start` is valid for `len` initialised numbers (zeroed at allocation, and every
        // bit pattern is a value of a `Pod`), or dangling and aligned with no bytes to read.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// All numbers, to be changed.
    #[inline]
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: as in `as_slice`; `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Pod> Drop for Buffer<T> {
    fn drop(&mut self) {
        if self.len * size_of::<T>() == 0 {
            return;
        }
        if let Some(layout) = Self::layout(self.len) {
            // SAFETY: `start` came from `alloc_zeroed` with this very layout and is freed once.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) };
        }
    }
}

// SAFETY: a buffer owns plain numbers; nothing in it is tied to a thread.
unsafe impl<T: Pod + Send> Send for Buffer<T> {}
// SAFETY: shared access only reads plain numbers.
unsafe impl<T: Pod + Sync> Sync for Buffer<T> {}

impl<T: Pod + std::fmt::Debug> std::fmt::Debug for Buffer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} numbers)", self.len)
    }
}

/// A mutable slice that several tasks write at once, each its own disjoint part.
pub(super) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

impl<'a, T> Shared<'a, T> {
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// Numbers `at .. at + len`.
    ///
    /// # Safety
    /// The range lies within the slice, and no two live borrows of it overlap.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub unsafe fn part(&self, at: usize, len: usize) -> &mut [T] {
        debug_assert!(at + len <= self.len);
        // SAFETY: in range and disjoint from every other borrow, both by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }

    /// A pointer to number `at`, for writes that the caller keeps in range and disjoint.
    #[inline(always)]
    pub fn at(&self, at: usize) -> *mut T {
        debug_assert!(at <= self.len);
        self.start.wrapping_add(at)
    }
}

// SAFETY: tasks on several threads use disjoint parts (the contract of `part` and `at`).
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
