//! The library's functions, looked up by name.
//!
//! cudarc has the numbers of the interface. Its functions are not used, as in `driver/api.rs`: they panic when a symbol is
//! missing and take a status that they do not know for one that they do.

use std::ffi::{CStr, OsString, c_char, c_int, c_void};
use std::mem::ManuallyDrop;

use cudarc::cublaslt::sys;
use libloading::Library;

/// Names the library's file, or is `none`.
pub const VARIABLE: &str = "LACUNA_CUBLASLT";

/// Where the loader looks, the newest first.
const NAMES: &[&str] = if cfg!(windows) {
    &["cublasLt64_13.dll", "cublasLt64_12.dll"]
} else {
    &["libcublasLt.so.13", "libcublasLt.so.12"]
};

/// What a function returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Status(pub u32);

pub const NOT_SUPPORTED: Status = Status(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED as u32);

impl Status {
    pub fn ok(self) -> std::result::Result<(), Status> {
        if self == Status(0) { Ok(()) } else { Err(self) }
    }
}

/// What the library found for a product; as `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Choice {
    pub algorithm: sys::cublasLtMatmulAlgo_t,
    pub workspace: usize,
    pub state: Status,
    pub waves: f32,
    pub reserved: [c_int; 4],
}

/// An object of the library's.
pub type Object = *mut c_void;

macro_rules! functions {
    ($($name:ident $symbol:literal ($($argument:ty),*);)*) => {
        /// The library's functions, named by what they do.
        pub struct Api {
            $(pub $name: unsafe extern "C" fn($($argument),*) -> Status,)*
            pub version: unsafe extern "C" fn() -> usize,
            status_name: Option<unsafe extern "C" fn(Status) -> *const c_char>,
            /// Never unloaded: what it has put into a context may be there as long as the process.
            #[cfg_attr(not(feature = "simt"), expect(dead_code))]
            pub library: ManuallyDrop<Library>,
        }

        impl Api {
            /// # Errors
            /// What is missing.
            pub fn of(library: Library) -> std::result::Result<Self, String> {
                // SAFETY: the types are those of the functions in cublasLt.h, and `library` stays loaded.
                unsafe {
                    Ok(Self {
                        $($name: *library.get($symbol).map_err(|_| lacks($symbol))?,)*
                        version: *library.get(b"cublasLtGetVersion").map_err(|_| lacks(b"cublasLtGetVersion"))?,
                        status_name: library.get(b"cublasLtGetStatusName").ok().map(|f| *f),
                        library: ManuallyDrop::new(library),
                    })
                }
            }
        }
    };
}

functions! {
    create b"cublasLtCreate" (*mut Object);
    destroy b"cublasLtDestroy" (Object);
    product_create b"cublasLtMatmulDescCreate" (*mut Object, u32, u32);
    product_destroy b"cublasLtMatmulDescDestroy" (Object);
    product_set b"cublasLtMatmulDescSetAttribute" (Object, u32, *const c_void, usize);
    layout_create b"cublasLtMatrixLayoutCreate" (*mut Object, u32, u64, u64, i64);
    layout_destroy b"cublasLtMatrixLayoutDestroy" (Object);
    preference_create b"cublasLtMatmulPreferenceCreate" (*mut Object);
    preference_destroy b"cublasLtMatmulPreferenceDestroy" (Object);
    preference_set b"cublasLtMatmulPreferenceSetAttribute" (Object, u32, *const c_void, usize);
    choose b"cublasLtMatmulAlgoGetHeuristic" (
        Object, Object, Object, Object, Object, Object, Object, c_int, *mut Choice, *mut c_int
    );
    multiply b"cublasLtMatmul" (
        Object, Object, *const c_void, u64, Object, u64, Object, *const c_void, u64, Object, u64, Object,
        *const sys::cublasLtMatmulAlgo_t, u64, usize, *mut c_void
    );
}

/// What the loader says, which the error leaves to its source.
fn reason(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn lacks(symbol: &[u8]) -> String {
    format!("it has no {}", String::from_utf8_lossy(symbol))
}

impl Api {
    /// The library that is named by [`VARIABLE`], or the newest that the loader knows and that starts, and a handle.
    ///
    /// # Errors
    /// What was looked for, and why it would not do.
    pub fn open() -> std::result::Result<(Self, Object), String> {
        let named = std::env::var_os(VARIABLE).filter(|name| !name.is_empty());
        if named.as_ref().is_some_and(|name| name == "none") {
            return Err(format!("switched off by {VARIABLE}=none"));
        }
        let names: Vec<OsString> = match named {
            Some(name) => vec![name],
            None => NAMES.iter().map(OsString::from).collect(),
        };
        let mut reasons = Vec::new();
        for name in names {
            // SAFETY: loading runs the library's initialisers, which is what it is loaded for.
            let loaded = unsafe { Library::new(&name) }.map_err(|e| reason(&e)).and_then(Api::of);
            match loaded.and_then(Self::start) {
                Ok(started) => return Ok(started),
                Err(reason) => reasons.push(format!("{}: {reason}", name.display())),
            }
        }
        Err(reasons.join("; "))
    }

    fn start(self) -> std::result::Result<(Self, Object), String> {
        let mut handle: Object = std::ptr::null_mut();
        // SAFETY: writes a handle.
        match unsafe { (self.create)(&raw mut handle) }.ok() {
            Ok(()) => Ok((self, handle)),
            Err(status) => Err(format!("it does not start: {}", self.name(status))),
        }
    }

    pub fn name(&self, status: Status) -> String {
        // SAFETY: takes any number, and gives null or a string that is static in the library.
        let text = self.status_name.map(|name| unsafe { name(status) }).filter(|text| !text.is_null());
        // SAFETY: as above.
        text.map(|text| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
            .unwrap_or_else(|| format!("status {}", status.0))
    }
}

/// Whether a file was named that is to be used.
pub fn is_named() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|name| !name.is_empty() && name != "none")
}
