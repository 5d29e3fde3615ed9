//! The functions of the driver library, looked up by name when the first of them is wanted. A program that
//! never asks for a card starts without the library.
//!
//! cudarc finds the library and has the types. Its wrappers are not used: they panic when a symbol is missing, and
//! make a Rust enum of whatever number a driver returns, which is not defined for a number that a newer driver
//! has added. Here a missing symbol is an error, and a result is a number.

use std::ffi::{CStr, c_char, c_int, c_uchar, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys;
pub use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdeviceptr, CUevent, CUfunction, CUgraph, CUgraphExec, CUmodule, CUstream,
};

/// What a driver function returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Code(pub u32);

impl Code {
    pub const SUCCESS: Code = Code(0);
    pub const INVALID_VALUE: Code = Code(1);
    pub const OUT_OF_MEMORY: Code = Code(2);
    pub const STUB_LIBRARY: Code = Code(34);
    pub const NO_DEVICE: Code = Code(100);
    pub const INVALID_IMAGE: Code = Code(200);
    pub const NO_BINARY_FOR_GPU: Code = Code(209);
    pub const ECC_UNCORRECTABLE: Code = Code(214);
    pub const INVALID_PTX: Code = Code(218);
    pub const JIT_COMPILER_NOT_FOUND: Code = Code(221);
    pub const UNSUPPORTED_PTX_VERSION: Code = Code(222);
    pub const JIT_COMPILATION_DISABLED: Code = Code(223);
    pub const INVALID_SOURCE: Code = Code(300);
    pub const ILLEGAL_ADDRESS: Code = Code(700);
    pub const LAUNCH_TIMEOUT: Code = Code(702);
    pub const LAUNCH_FAILED: Code = Code(719);
    pub const SYSTEM_NOT_READY: Code = Code(802);
    pub const SYSTEM_DRIVER_MISMATCH: Code = Code(803);

    /// Whether it tells of a kernel that failed while it ran. Nothing works in that context any more.
    pub fn is_of_a_kernel(self) -> bool {
        self == Code::ECC_UNCORRECTABLE
            || self == Code::LAUNCH_TIMEOUT
            || self == Code::ILLEGAL_ADDRESS
            || (710..=Code::LAUNCH_FAILED.0).contains(&self.0)
    }

    pub fn ok(self) -> Result<(), Code> {
        if self == Code::SUCCESS { Ok(()) } else { Err(self) }
    }
}

/// Why there is no [`Api`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    Library,
    Symbol(&'static str),
}

/// The library's name in messages.
pub const LIBRARY: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };

macro_rules! functions {
    ($($name:ident $symbol:literal ($($argument:ty),*);)*) => {
        /// The driver's functions, named by what they do.
        pub struct Api {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> Code,)*
            /// `cuFuncGetParamInfo`, since CUDA 12.4.
            pub parameter: Option<unsafe extern "C" fn(CUfunction, usize, *mut usize, *mut usize) -> Code>,
        }

        impl Api {
            fn load() -> Result<Api, Missing> {
                Ok(Api {
                    $($name: symbol($symbol).ok_or(Missing::Symbol($symbol))?,)*
                    parameter: symbol("cuFuncGetParamInfo"),
                })
            }
        }
    };
}

functions! {
    init "cuInit" (c_uint);
    driver_version "cuDriverGetVersion" (*mut c_int);
    error_name "cuGetErrorName" (Code, *mut *const c_char);
    error_text "cuGetErrorString" (Code, *mut *const c_char);
    device_count "cuDeviceGetCount" (*mut c_int);
    device "cuDeviceGet" (*mut CUdevice, c_int);
    device_name "cuDeviceGetName" (*mut c_char, c_int, CUdevice);
    device_attribute "cuDeviceGetAttribute" (*mut c_int, c_int, CUdevice);
    device_memory "cuDeviceTotalMem_v2" (*mut usize, CUdevice);
    context_retain "cuDevicePrimaryCtxRetain" (*mut CUcontext, CUdevice);
    context_release "cuDevicePrimaryCtxRelease_v2" (CUdevice);
    context_set "cuCtxSetCurrent" (CUcontext);
    stream_create "cuStreamCreate" (*mut CUstream, c_uint);
    stream_destroy "cuStreamDestroy_v2" (CUstream);
    stream_synchronize "cuStreamSynchronize" (CUstream);
    module_load "cuModuleLoadData" (*mut CUmodule, *const c_void);
    module_unload "cuModuleUnload" (CUmodule);
    module_function "cuModuleGetFunction" (*mut CUfunction, CUmodule, *const c_char);
    function_attribute "cuFuncGetAttribute" (*mut c_int, c_int, CUfunction);
    function_set_attribute "cuFuncSetAttribute" (CUfunction, c_int, c_int);
    launch "cuLaunchKernel" (
        CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void,
        *mut *mut c_void
    );
    memory_allocate "cuMemAlloc_v2" (*mut CUdeviceptr, usize);
    memory_free "cuMemFree_v2" (CUdeviceptr);
    memory_info "cuMemGetInfo_v2" (*mut usize, *mut usize);
    host_allocate "cuMemHostAlloc" (*mut *mut c_void, usize, c_uint);
    host_free "cuMemFreeHost" (*mut c_void);
    upload "cuMemcpyHtoDAsync_v2" (CUdeviceptr, *const c_void, usize, CUstream);
    download "cuMemcpyDtoHAsync_v2" (*mut c_void, CUdeviceptr, usize, CUstream);
    fill "cuMemsetD8Async" (CUdeviceptr, c_uchar, usize, CUstream);
    capture_begin "cuStreamBeginCapture_v2" (CUstream, c_uint);
    capture_end "cuStreamEndCapture" (CUstream, *mut CUgraph);
    graph_instantiate "cuGraphInstantiateWithFlags" (*mut CUgraphExec, CUgraph, c_ulonglong);
    graph_destroy "cuGraphDestroy" (CUgraph);
    graph_launch "cuGraphLaunch" (CUgraphExec, CUstream);
    graph_exec_destroy "cuGraphExecDestroy" (CUgraphExec);
    event_create "cuEventCreate" (*mut CUevent, c_uint);
    event_record "cuEventRecord" (CUevent, CUstream);
    event_synchronize "cuEventSynchronize" (CUevent);
    event_elapsed "cuEventElapsedTime" (*mut f32, CUevent, CUevent);
    event_destroy "cuEventDestroy_v2" (CUevent);
}

/// A function of the library, which is there.
fn symbol<F: Copy>(name: &'static str) -> Option<F> {
    // SAFETY: `F` is the type of the function `name` in cuda.h (the list above, checked against cudarc's), and the
    // library is never unloaded. `culib` panics where there is no library; `Api::get` has looked.
    unsafe { sys::culib().get::<F>(name.as_bytes()).ok().map(|found| *found) }
}

impl Api {
    /// The functions, once the library is found.
    pub fn get() -> Result<&'static Api, Missing> {
        static API: OnceLock<Result<Api, Missing>> = OnceLock::new();
        let api = API.get_or_init(|| {
            // SAFETY: loading the driver library runs its initialisers, which is what it is loaded for.
            if unsafe { sys::is_culib_present() } { Api::load() } else { Err(Missing::Library) }
        });
        api.as_ref().map_err(|missing| *missing)
    }

    /// As in `CUDA_ERROR_ILLEGAL_ADDRESS`; the number where the driver does not know it.
    pub fn name(&self, code: Code) -> String {
        Self::text(self.error_name, code).unwrap_or_else(|| format!("CUDA error {}", code.0))
    }

    /// Name and description.
    pub fn describe(&self, code: Code) -> String {
        match Self::text(self.error_text, code) {
            Some(text) => format!("{} ({text})", self.name(code)),
            None => self.name(code),
        }
    }

    fn text(ask: unsafe extern "C" fn(Code, *mut *const c_char) -> Code, code: Code) -> Option<String> {
        let mut text = std::ptr::null();
        // SAFETY: the pointer is written to, or left null; what it points to is static in the driver.
        unsafe { ask(code, &raw mut text).ok().ok()? };
        if text.is_null() {
            return None;
        }
        // SAFETY: a C string, static in the driver.
        Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    /// The CUDA version of the driver, major and minor.
    pub fn version(&self) -> Result<(u32, u32), Code> {
        let mut version: c_int = 0;
        // SAFETY: writes an int.
        unsafe { (self.driver_version)(&raw mut version) }.ok()?;
        let version = version.unsigned_abs();
        Ok((version / 1000, version % 1000 / 10))
    }

    /// An attribute of a card.
    pub fn attribute(&self, device: CUdevice, attribute: sys::CUdevice_attribute) -> Result<u32, Code> {
        let mut value: c_int = 0;
        // SAFETY: writes an int; the driver checks the other two.
        unsafe { (self.device_attribute)(&raw mut value, attribute as c_int, device) }.ok()?;
        Ok(value.unsigned_abs())
    }

    /// An attribute of a kernel.
    ///
    /// # Safety
    /// The function's module is loaded.
    pub unsafe fn of_function(
        &self,
        function: CUfunction,
        attribute: sys::CUfunction_attribute,
    ) -> Result<u32, Code> {
        let mut value: c_int = 0;
        // SAFETY: writes an int; the function exists, by the caller's promise.
        unsafe { (self.function_attribute)(&raw mut value, attribute as c_int, function) }.ok()?;
        Ok(value.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_kernels_are_told_from_others() {
        for code in [214, 700, 702, 710, 714, 715, 716, 717, 718, 719] {
            assert!(Code(code).is_of_a_kernel(), "{code}");
        }
        for code in [0, 1, 2, 100, 200, 701, 720, 900, 999] {
            assert!(!Code(code).is_of_a_kernel(), "{code}");
        }
    }

    /// Where there is no driver: an answer, no panic.
    #[test]
    fn asking_for_the_library_never_panics() {
        assert_eq!(Api::get().err(), Api::get().err());
    }
}
