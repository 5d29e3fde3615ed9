//! From nothing to a card that runs kernels: what is there, whether it will do, and loading the kernels.

use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::sync::Mutex;

use cudarc::driver::sys::{CUdevice_attribute as Attribute, CUfunction_attribute as OfFunction};

use super::api::{Api, CUcontext, CUdevice, CUfunction, Code, LIBRARY, Missing};
use super::{Inner, Kernel};
use crate::backend::cuda::Facts;
use crate::backend::cuda::device::Counters;
use crate::error::{Error, Result};

/// The kernels of one file, as build/nvcc.rs compiled them.
#[derive(Debug)]
pub(super) struct Fatbin {
    pub stem: &'static str,
    pub bytes: &'static [u8],
    /// The architectures it has a cubin for, as in `90a`; PTX for the lowest of those without a letter.
    pub archs: &'static [&'static str],
    pub kernels: &'static [&'static str],
}

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// The oldest driver: that of the first nvcc which knows sm_90a.
const OLDEST_DRIVER: (u32, u32) = (12, 0);
/// The oldest card: cp.async and bf16 mma.
const OLDEST_CARD: (u32, u32) = (8, 0);

/// What a machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Driver {
    Missing,
    Lacks(&'static str),
    /// It refused to start: code and name.
    Failed(Code, String),
    Found {
        version: (u32, u32),
        /// Name and compute capability of each.
        cards: Vec<Named>,
    },
}

/// Name and compute capability of a card.
type Named = (String, (u32, u32));

/// Whether card `ordinal` could be opened, without opening it; its name.
///
/// # Errors
/// [`Error::Device`] that says what is missing: driver, card, kernels, or one that fits the others.
pub fn available(ordinal: usize) -> Result<String> {
    choose(&look(), FATBINS, ordinal).map(|(name, _)| name)
}

/// The kernels in this build, by the file each is in: `(stem, kernel)`.
pub fn built_in() -> impl Iterator<Item = (&'static str, &'static str)> {
    FATBINS.iter().flat_map(|f| f.kernels.iter().map(|k| (f.stem, *k)))
}

fn device(ordinal: usize) -> String {
    format!("cuda:{ordinal}")
}

fn lack(ordinal: usize, what: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::Device { device: device(ordinal), what: what.into(), hint: hint.into() }
}

/// What there is on this machine.
fn look() -> Driver {
    let api = match Api::get() {
        Ok(api) => api,
        Err(Missing::Library) => return Driver::Missing,
        Err(Missing::Symbol(name)) => return Driver::Lacks(name),
    };
    let found = || -> Result<Driver, Code> {
        // SAFETY: takes a number that must be 0.
        match unsafe { (api.init)(0) } {
            Code::NO_DEVICE => return Ok(Driver::Found { version: api.version()?, cards: Vec::new() }),
            code => code.ok()?,
        }
        let mut count: c_int = 0;
        // SAFETY: writes an int.
        unsafe { (api.device_count)(&raw mut count) }.ok()?;
        let cards = (0..count).map(|ordinal| card(api, ordinal).map(|(_, card)| card));
        Ok(Driver::Found { version: api.version()?, cards: cards.collect::<Result<_, _>>()? })
    };
    found().unwrap_or_else(|code| Driver::Failed(code, api.name(code)))
}

fn card(api: &Api, ordinal: c_int) -> Result<(CUdevice, Named), Code> {
    let mut device: CUdevice = 0;
    let mut name = [0_u8; 256];
    // SAFETY: the first writes a device, the second at most 256 bytes, NUL included.
    unsafe {
        (api.device)(&raw mut device, ordinal).ok()?;
        (api.device_name)(name.as_mut_ptr().cast(), name.len() as c_int, device).ok()?;
    }
    let length = name.iter().position(|&c| c == 0).unwrap_or(name.len());
    let major = api.attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = api.attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok((device, (String::from_utf8_lossy(&name[..length]).into_owned(), (major, minor))))
}

/// The name of the card and its capability, if `found` and the kernels will do.
fn choose(found: &Driver, fatbins: &[Fatbin], ordinal: usize) -> Result<Named> {
    let lack = |what: String, hint: &str| Err(lack(ordinal, what, hint));
    let (version, cards) = match found {
        Driver::Missing => {
            return lack(
                format!("no NVIDIA driver found ({LIBRARY})"),
                "install the driver, or use --device cpu (or simt, to run the kernels on the CPU)",
            );
        }
        Driver::Lacks(symbol) => {
            return lack(
                format!("the NVIDIA driver is too old: it has no {symbol}"),
                "update the driver to one for CUDA 12.0 or later, or use --device cpu",
            );
        }
        Driver::Failed(code, name) => {
            let hint = match *code {
                Code::STUB_LIBRARY => {
                    "the libcuda.so that was found is the toolkit's stub; take its folder out of LD_LIBRARY_PATH"
                }
                Code::SYSTEM_DRIVER_MISMATCH => {
                    "the driver was updated and its kernel module was not; load it anew or restart the machine"
                }
                Code::SYSTEM_NOT_READY => "see whether nvidia-smi works and nvidia-fabricmanager runs",
                _ => "see whether nvidia-smi works; --device cpu needs no driver",
            };
            return lack(format!("the NVIDIA driver does not start: {name}"), hint);
        }
        Driver::Found { version, cards } => (*version, cards),
    };
    if version < OLDEST_DRIVER {
        let (major, minor) = version;
        let what = format!("the NVIDIA driver is for CUDA {major}.{minor}, expected 12.0 or later");
        return lack(what, "update the driver, or use --device cpu");
    }
    if cards.is_empty() {
        let what = "there is an NVIDIA driver, but it sees no card".to_owned();
        return lack(what, "see nvidia-smi and CUDA_VISIBLE_DEVICES, or use --device cpu");
    }
    let Some((name, capability)) = cards.get(ordinal) else {
        let names: Vec<String> =
            cards.iter().enumerate().map(|(i, (name, _))| format!("cuda:{i} is {name}")).collect();
        return lack(format!("there is no card {ordinal}"), &names.join(", "));
    };
    let (major, minor) = *capability;
    if *capability < OLDEST_CARD {
        let what = format!("{name} has compute capability {major}.{minor}, expected 8.0 or later (Ampere)");
        return lack(what, "use another card, or --device cpu");
    }
    if fatbins.is_empty() {
        return lack(
            "this program was built without nvcc and has no kernels".into(),
            "run tools/setup-cuda, then build again; or use --device cpu",
        );
    }
    let wanted = fatbins.iter().filter(|f| is_wanted(f.stem, *capability));
    if let Some(fatbin) = wanted.clone().find(|f| !has_image(f.archs, *capability)) {
        let what = format!(
            "{name} is sm_{major}{minor}, and the kernels of {} were built for {}",
            fatbin.stem,
            fatbin.archs.join(",")
        );
        let hint = format!("build again without LACUNA_CUDA_ARCHS, or with {major}{minor} in it");
        return lack(what, &hint);
    }
    Ok((name.clone(), *capability))
}

/// Whether a card loads the file `stem`: `*_sm90` are for Hopper and nothing else.
fn is_wanted(stem: &str, capability: (u32, u32)) -> bool {
    !stem.ends_with("_sm90") || capability.0 == 9
}

/// Whether a fatbin with cubins for `archs` has something that the card runs: a cubin of its generation, or the PTX.
fn has_image(archs: &[&str], (major, minor): (u32, u32)) -> bool {
    archs.iter().any(|arch| {
        let number = |digits: &str| digits.parse::<u32>().map(|n| (n / 10, n % 10)).unwrap_or((u32::MAX, 0));
        if let Some(exact) = arch.strip_suffix('a') {
            number(exact) == (major, minor)
        } else if let Some(family) = arch.strip_suffix('f') {
            number(family).0 == major && number(family).1 <= minor
        } else {
            // The lowest of these has PTX, which every later card compiles.
            number(arch) <= (major, minor)
        }
    })
}

/// Why the driver did not take the kernels of a file.
fn refused(
    ordinal: usize,
    stem: &str,
    (code, name): (Code, &str),
    driver: (u32, u32),
    compiler: Option<&str>,
) -> Error {
    let (major, minor) = driver;
    let built = compiler.unwrap_or("an unknown nvcc");
    let what = format!(
        "the driver (for CUDA {major}.{minor}) refused the kernels of {stem}, built with nvcc {built}: {name}"
    );
    let mut numbers = built.split('.').map_while(|n| n.parse::<u32>().ok());
    let compiler = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // Cubins run on any driver of the same major version; PTX wants a driver as new as the compiler.
    let needed = if code == Code::UNSUPPORTED_PTX_VERSION { compiler } else { (compiler.0, 0) };
    let hint = match code {
        _ if driver < needed => {
            let branch = branch(needed).map(|r| format!(" (R{r})")).unwrap_or_default();
            format!(
                "it needs a driver for CUDA {}.{} or later{branch}; update the driver, or build with an nvcc of CUDA {major}",
                needed.0, needed.1
            )
        }
        Code::JIT_COMPILER_NOT_FOUND => {
            "install the driver's PTX compiler (libnvidia-ptxjitcompiler), or build with the card's architecture in LACUNA_CUDA_ARCHS".into()
        }
        Code::JIT_COMPILATION_DISABLED => "unset CUDA_DISABLE_PTX_JIT".into(),
        _ => "build again with the card's architecture in LACUNA_CUDA_ARCHS; if that does not help, report it".into(),
    };
    lack(ordinal, what, hint)
}

/// The driver branch that brought a CUDA version on Linux.
fn branch(version: (u32, u32)) -> Option<u32> {
    let known = [
        ((12, 0), 525),
        ((12, 1), 530),
        ((12, 2), 535),
        ((12, 3), 545),
        ((12, 4), 550),
        ((12, 5), 555),
        ((12, 6), 560),
        ((12, 8), 570),
        ((12, 9), 575),
        ((13, 0), 580),
    ];
    known.iter().find(|(v, _)| *v == version).map(|(_, r)| *r)
}

impl Inner {
    /// Card `ordinal` with all its kernels loaded.
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        let found = look();
        let (name, capability) = choose(&found, FATBINS, ordinal)?;
        let (Ok(api), Driver::Found { version, .. }) = (Api::get(), found) else {
            return Err(lack(ordinal, "the NVIDIA driver has gone away", "see whether nvidia-smi works"));
        };
        let failed = |what: &str, code: Code| {
            lack(ordinal, format!("{name}: {what}: {}", api.describe(code)), "see whether nvidia-smi works")
        };
        let number = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
        let ask = || -> Result<(CUdevice, u32, usize, u32), Code> {
            let (device, _) = card(api, number)?;
            let multiprocessors =
                api.attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
            let shared =
                api.attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
            let mut memory = 0;
            // SAFETY: writes a size; the device is one.
            unsafe { (api.device_memory)(&raw mut memory, device) }.ok()?;
            Ok((device, multiprocessors, memory, shared))
        };
        let (device, multiprocessors, memory, shared_per_block) =
            ask().map_err(|code| failed("cannot ask for its properties", code))?;
        let facts = Facts {
            name: name.clone(),
            capability,
            multiprocessors,
            memory: memory as u64,
            shared_per_block,
            driver: Some(version),
        };
        let mut context: CUcontext = std::ptr::null_mut();
        // SAFETY: writes a context; the device is one.
        unsafe { (api.context_retain)(&raw mut context, device) }
            .ok()
            .map_err(|code| failed("cannot make a context", code))?;
        // From here on `drop` gives back what there is.
        let mut inner = Inner {
            api,
            device,
            context,
            stream: std::ptr::null_mut(),
            modules: Vec::new(),
            kernels: HashMap::new(),
            label: format!("{} ({name})", self::device(ordinal)),
            facts,
            recording: Mutex::new(None),
            last: Mutex::new(""),
            counters: Counters::default(),
            ring: Mutex::new(None),
        };
        inner.enter()?;
        // A stream that does not wait for the default one.
        const NON_BLOCKING: u32 = 1;
        // SAFETY: writes a stream of the context that was just made current.
        unsafe { (api.stream_create)(&raw mut inner.stream, NON_BLOCKING) }
            .ok()
            .map_err(|code| failed("cannot make a stream", code))?;
        for fatbin in FATBINS.iter().filter(|f| is_wanted(f.stem, capability)) {
            inner.load(fatbin, ordinal, version)?;
        }
        Ok(inner)
    }

    /// Loads one file's kernels.
    fn load(&mut self, fatbin: &'static Fatbin, ordinal: usize, driver: (u32, u32)) -> Result<()> {
        let api = self.api;
        let mut module = std::ptr::null_mut();
        // SAFETY: the image is a whole fatbin that nvcc wrote, aligned, and static; the context is current.
        let code = unsafe { (api.module_load)(&raw mut module, fatbin.bytes.as_ptr().cast()) };
        match code {
            Code::SUCCESS => self.modules.push(module),
            Code::INVALID_IMAGE
            | Code::NO_BINARY_FOR_GPU
            | Code::INVALID_PTX
            | Code::JIT_COMPILER_NOT_FOUND
            | Code::UNSUPPORTED_PTX_VERSION
            | Code::JIT_COMPILATION_DISABLED
            | Code::INVALID_SOURCE => {
                return Err(refused(ordinal, fatbin.stem, (code, &api.name(code)), driver, COMPILER));
            }
            code => return Err(self.failed(format_args!("cannot load the kernels of {}", fatbin.stem), code)),
        }
        for &name in fatbin.kernels {
            let symbol = CString::new(name).unwrap_or_default();
            let mut function = std::ptr::null_mut();
            // SAFETY: the module is loaded, the name ends with NUL.
            let found = unsafe { (api.module_function)(&raw mut function, module, symbol.as_ptr()) }.ok();
            // SAFETY: the function is of a module that stays loaded as long as `self` lives.
            let kernel = found.and_then(|()| unsafe { kernel(api, function, self.facts.shared_per_block) });
            let kernel = kernel.map_err(|code| self.failed(format_args!("cannot load {name}"), code))?;
            if self.kernels.insert(name, kernel).is_some() {
                return Err(lack(
                    ordinal,
                    format!("two kernels are named {name}, one in {}", fatbin.stem),
                    "report it",
                ));
            }
        }
        Ok(())
    }
}

/// What a launch must keep to, and leave to use all of the shared memory of a block.
///
/// # Safety
/// The function's module is loaded.
unsafe fn kernel(api: &Api, function: CUfunction, shared_per_block: u32) -> Result<Kernel, Code> {
    // SAFETY: the caller's promise, here and below.
    let threads = unsafe { api.of_function(function, OfFunction::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK) }?;
    // SAFETY: as above.
    let of_its_own = unsafe { api.of_function(function, OfFunction::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES) }?;
    let shared = shared_per_block.saturating_sub(of_its_own);
    let attribute = OfFunction::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as c_int;
    let value = c_int::try_from(shared).unwrap_or(c_int::MAX);
    // SAFETY: as above.
    unsafe { (api.function_set_attribute)(function, attribute, value) }.ok()?;
    // SAFETY: as above.
    let parameters = api.parameter.and_then(|ask| unsafe { parameters(ask, function) });
    Ok(Kernel { function, threads, shared, parameters })
}

/// Bytes of each parameter, if the driver says.
///
/// # Safety
/// As [`kernel`].
unsafe fn parameters(
    ask: unsafe extern "C" fn(CUfunction, usize, *mut usize, *mut usize) -> Code,
    function: CUfunction,
) -> Option<Box<[u32]>> {
    let mut sizes = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: writes two sizes; the caller's promise.
        match unsafe { ask(function, sizes.len(), &raw mut offset, &raw mut size) } {
            Code::SUCCESS => sizes.push(u32::try_from(size).unwrap_or(u32::MAX)),
            // There is no parameter of this number.
            Code::INVALID_VALUE => return Some(sizes.into_boxed_slice()),
            _ => return None,
        }
    }
}

#[cfg(test)]
#[path = "open_tests.rs"]
mod tests;
