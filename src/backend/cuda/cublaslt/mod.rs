//! cuBLASLt, loaded at run time. An algorithm is chosen once for every kind of product, by the library's heuristics.

mod api;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{c_int, c_void};
use std::sync::{Mutex, PoisonError};

pub use api::is_named;
use api::{Api, Choice, NOT_SUPPORTED, Object, Status, VARIABLE};
use cudarc::cublaslt::sys;
use sys::cublasLtEpilogue_t as Epilogue;
use sys::cublasLtMatmulDescAttributes_t as OfProduct;
use sys::cublasLtMatmulPreferenceAttributes_t as OfPreference;
use sys::cublasLtReductionScheme_t as Reduction;

use super::gemm::GemmCall;
use crate::backend::Layout;
use crate::config::Activation;
use crate::element::Dtype;
use crate::error::{Error, Result};

/// Bytes of device memory that it may use for itself: what NVIDIA recommends on Hopper.
pub const WORKSPACE: usize = 32 << 20;

/// What addresses of device memory are multiples of, at most, as far as the library cares.
const ALIGNMENT: u32 = 256;

/// All that an algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    sizes: [usize; 3],
    strides: [usize; 3],
    dtypes: [u32; 2],
    /// Weight and x, as the library sees them.
    transposed: [bool; 2],
    epilogue: u32,
    accumulate: bool,
    /// Of the addresses of weight, x and out, and of bias and out together.
    alignments: [u32; 4],
}

impl Kind {
    /// `None` where the library does not do such a product, or does another.
    fn of(call: &GemmCall) -> Option<Self> {
        let number = |dtype| match dtype {
            Dtype::F16 => Some(sys::cudaDataType::CUDA_R_16F as u32),
            Dtype::Bf16 => Some(sys::cudaDataType::CUDA_R_16BF as u32),
            // It would round the factors, or be slower than the kernels that do not.
            Dtype::F32 => None,
        };
        let dtype = number(call.dtype)?;
        let out = if call.out_dtype == call.dtype { dtype } else { sys::cudaDataType::CUDA_R_32F as u32 };
        let epilogue = match (call.bias.is_some(), call.activation) {
            (false, None) => Epilogue::CUBLASLT_EPILOGUE_DEFAULT,
            (true, None) => Epilogue::CUBLASLT_EPILOGUE_BIAS,
            (false, Some(Activation::GeluTanh)) => Epilogue::CUBLASLT_EPILOGUE_GELU,
            (true, Some(Activation::GeluTanh)) => Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
            (_, Some(Activation::GeluErf | Activation::Silu)) => return None,
        };
        // A bias is of the format of `out` there.
        if call.bias.is_some() && out != dtype {
            return None;
        }
        let sizes = [call.rows, call.columns, call.inputs];
        let strides = [call.x_stride, call.weight_stride, call.out_stride];
        let (x_width, weight_width) = (
            if call.x_layout == Layout::OutIn { call.inputs } else { call.rows },
            if call.layout == Layout::OutIn { call.inputs } else { call.columns },
        );
        // Rows that overlap.
        if sizes.contains(&0) || call.x_stride < x_width || call.weight_stride < weight_width {
            return None;
        }
        if sizes.iter().chain(&strides).any(|&n| i32::try_from(n).is_err()) {
            return None;
        }
        let alignment = |address: u64| 1 << address.trailing_zeros().min(ALIGNMENT.trailing_zeros());
        Some(Self {
            sizes,
            strides,
            dtypes: [dtype, out],
            transposed: [call.layout == Layout::OutIn, call.x_layout == Layout::InOut],
            epilogue: epilogue as u32,
            accumulate: call.accumulate,
            alignments: [call.weight, call.x, call.out, call.out | call.bias.unwrap_or(0)].map(alignment),
        })
    }
}

/// A kind of product, as the library describes it, and how it is done.
struct Plan {
    product: Object,
    /// Of weight, x and out.
    layouts: [Object; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The library with a handle.
pub struct CublasLt {
    api: Api,
    handle: Object,
    /// Address and bytes.
    workspace: (u64, usize),
    stream: *mut c_void,
    label: String,
    /// Nothing where the library has no algorithm.
    plans: Mutex<HashMap<Kind, Option<Plan>>>,
}

// SAFETY: handle and descriptions are of the process; a description is used by one thread at a time, behind the mutex.
unsafe impl Send for CublasLt {}
// SAFETY: as above, and the functions on a handle may be called from several threads.
unsafe impl Sync for CublasLt {}

impl CublasLt {
    /// Finds and opens it for the device whose context is current. Products are done on `stream`.
    ///
    /// # Errors
    /// [`Error::Device`] of `label` that says what was looked for and why it will not do.
    ///
    /// # Safety
    /// The stream is one of that context, or null, and stays as long as this does.
    pub unsafe fn open(label: &str, stream: *mut c_void) -> Result<Self> {
        let lack = |what: String| Error::Device {
            device: label.to_owned(),
            what: format!("no cuBLASLt: {what}"),
            hint: format!(
                "install it (pip: nvidia-cublas), name its file in {VARIABLE}, or use --gemm own (docs/engine.md)"
            ),
        };
        let (api, handle) = Api::open().map_err(lack)?;
        let (label, plans) = (label.to_owned(), Mutex::default());
        Ok(Self { api, handle, workspace: (0, 0), stream, label, plans })
    }

    /// Gives it memory for itself, [`WORKSPACE`] bytes.
    ///
    /// # Safety
    /// They are device memory that no one else uses, and stay as long as this does.
    pub unsafe fn set_workspace(&mut self, address: u64) {
        self.workspace = (address, WORKSPACE);
    }

    /// As in `cuBLASLt 13.1.0`.
    pub fn name(&self) -> String {
        // SAFETY: takes nothing.
        let version = unsafe { (self.api.version)() };
        format!("cuBLASLt {}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }

    /// Whether the library says that it works on memory of the host, as the stand-in of the tests does.
    #[cfg(feature = "simt")]
    pub fn works_on_the_host(&self) -> bool {
        // SAFETY: only looked for.
        unsafe { self.api.library.get::<*const c_void>(b"lacuna_works_on_host_memory") }.is_ok()
    }

    /// Whether there is an algorithm for a product.
    ///
    /// # Errors
    /// [`Error::Device`] when the library fails.
    #[cfg(feature = "simt")]
    pub fn knows(&self, call: &GemmCall) -> Result<bool> {
        let Some(kind) = Kind::of(call) else { return Ok(false) };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        self.plan_of(&mut plans, kind, call.bias).map(|plan| plan.is_some())
    }

    fn plan_of<'a>(
        &self,
        plans: &'a mut HashMap<Kind, Option<Plan>>,
        kind: Kind,
        bias: Option<u64>,
    ) -> Result<Option<&'a Plan>> {
        Ok(match plans.entry(kind) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(free) => free.insert(self.plan(&kind, bias)?),
        }
        .as_ref())
    }

    /// Asks for the product on the stream. False where there is no algorithm for it.
    ///
    /// # Errors
    /// [`Error::Device`] when the library fails.
    ///
    /// # Safety
    /// As for [`GemmLibrary::multiply`](super::GemmLibrary::multiply); the context is current.
    pub unsafe fn multiply(&self, call: &GemmCall) -> Result<bool> {
        let Some(kind) = Kind::of(call) else { return Ok(false) };
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(plan) = self.plan_of(&mut plans, kind, call.bias)? else { return Ok(false) };
        if let Some(bias) = call.bias {
            self.set_of_product(plan.product, OfProduct::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let (one, beta) = (1.0_f32, if call.accumulate { 1.0_f32 } else { 0.0 });
        let [weight, x, out] = plan.layouts;
        // SAFETY: descriptions and handle are there; alpha and beta are of the scale's type and read before this returns; that
        // the matrices lie in device memory is the caller's promise, and the workspace that of `open`'s.
        let status = unsafe {
            (self.api.multiply)(
                self.handle,
                plan.product,
                (&raw const one).cast(),
                call.weight,
                weight,
                call.x,
                x,
                (&raw const beta).cast(),
                call.out,
                out,
                call.out,
                out,
                &raw const plan.algorithm,
                self.workspace.0,
                self.workspace.1,
                self.stream,
            )
        };
        self.check("cublasLtMatmul", status, call)?;
        Ok(true)
    }

    /// The library's view of a kind of product. Its matrices lie column by column, so that what it is asked for is
    /// `outᵀ = Wᵀ xᵀ`: of `columns` by `rows` numbers, a column of which is a row of ours.
    /// Some versions look at the address of a bias when they choose.
    fn plan(&self, kind: &Kind, bias: Option<u64>) -> Result<Option<Plan>> {
        let [rows, columns, inputs] = kind.sizes.map(|n| n as u64);
        let [x_stride, weight_stride, out_stride] = kind.strides.map(|n| n as i64);
        let [dtype, out_dtype] = kind.dtypes;
        // Gives back what was made, unless it is taken out at the end.
        let mut made = Made { api: &self.api, product: std::ptr::null_mut(), layouts: Vec::new() };
        let (compute, scale) =
            (sys::cublasComputeType_t::CUBLAS_COMPUTE_32F as u32, sys::cudaDataType::CUDA_R_32F as u32);
        // SAFETY: writes an object.
        let status = unsafe { (self.api.product_create)(&raw mut made.product, compute, scale) };
        self.made("cublasLtMatmulDescCreate", status)?;
        let [weight_transposed, x_transposed] = kind.transposed;
        for (attribute, transposed) in [
            (OfProduct::CUBLASLT_MATMUL_DESC_TRANSA, weight_transposed),
            (OfProduct::CUBLASLT_MATMUL_DESC_TRANSB, x_transposed),
        ] {
            self.set_of_product(made.product, attribute, &u32::from(transposed))?;
        }
        self.set_of_product(made.product, OfProduct::CUBLASLT_MATMUL_DESC_EPILOGUE, &kind.epilogue)?;
        if let Some(bias) = bias {
            self.set_of_product(made.product, OfProduct::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let weight = if weight_transposed { (inputs, columns) } else { (columns, inputs) };
        let x = if x_transposed { (rows, inputs) } else { (inputs, rows) };
        for (dtype, (height, width), stride) in
            [(dtype, weight, weight_stride), (dtype, x, x_stride), (out_dtype, (columns, rows), out_stride)]
        {
            let mut layout: Object = std::ptr::null_mut();
            // SAFETY: writes an object.
            let status = unsafe { (self.api.layout_create)(&raw mut layout, dtype, height, width, stride) };
            self.made("cublasLtMatrixLayoutCreate", status)?;
            made.layouts.push(layout);
        }
        let Some(algorithm) = self.algorithm(kind, &made)? else { return Ok(None) };
        let (Some(layouts), product) = (made.layouts.first_chunk().copied(), made.product) else {
            return Ok(None);
        };
        (made.product, made.layouts) = (std::ptr::null_mut(), Vec::new());
        Ok(Some(Plan { product, layouts, algorithm }))
    }

    /// The library's first choice.
    fn algorithm(&self, kind: &Kind, made: &Made<'_>) -> Result<Option<sys::cublasLtMatmulAlgo_t>> {
        let &[weight, x, out] = made.layouts.as_slice() else { return Ok(None) };
        let mut preference = Preference { api: &self.api, object: std::ptr::null_mut() };
        // SAFETY: writes an object.
        let status = unsafe { (self.api.preference_create)(&raw mut preference.object) };
        self.made("cublasLtMatmulPreferenceCreate", status)?;
        let set = |attribute: OfPreference, value: *const c_void, size: usize| {
            // SAFETY: reads `size` bytes.
            let status =
                unsafe { (self.api.preference_set)(preference.object, attribute as u32, value, size) };
            self.made("cublasLtMatmulPreferenceSetAttribute", status)
        };
        // Sums of parts of `inputs` are kept in f32 and added in order: the same bits in every run.
        let reduction = Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        set(
            OfPreference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            (&raw const self.workspace.1).cast(),
            size_of::<usize>(),
        )?;
        set(
            OfPreference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
            (&raw const reduction).cast(),
            size_of::<u32>(),
        )?;
        let [of_weight, of_x, of_out, of_result] = kind.alignments;
        for (attribute, alignment) in [
            (OfPreference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, of_weight),
            (OfPreference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, of_x),
            (OfPreference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_out),
            (OfPreference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_result),
        ] {
            set(attribute, (&raw const alignment).cast(), size_of::<u32>())?;
        }
        let mut choice = Choice {
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspace: 0,
            state: NOT_SUPPORTED,
            waves: 0.0,
            reserved: [0; 4],
        };
        let mut found: c_int = 0;
        // SAFETY: the objects are there; writes at most one choice, and their number.
        let status = unsafe {
            (self.api.choose)(
                self.handle,
                made.product,
                weight,
                x,
                out,
                out,
                preference.object,
                1,
                &raw mut choice,
                &raw mut found,
            )
        };
        if status == NOT_SUPPORTED {
            return Ok(None);
        }
        self.made("cublasLtMatmulAlgoGetHeuristic", status)?;
        let usable = found > 0 && choice.state == Status(0) && choice.workspace <= self.workspace.1;
        Ok(usable.then_some(choice.algorithm))
    }

    fn set_of_product<T>(&self, product: Object, attribute: OfProduct, value: &T) -> Result<()> {
        // SAFETY: reads the bytes of `value`.
        let status = unsafe {
            (self.api.product_set)(
                product,
                attribute as u32,
                std::ptr::from_ref(value).cast(),
                size_of::<T>(),
            )
        };
        self.made("cublasLtMatmulDescSetAttribute", status)
    }

    fn failed(&self, what: String) -> Error {
        let hint = "--gemm own multiplies by the program's own kernels".into();
        Error::Device { device: self.label.clone(), what, hint }
    }

    fn made(&self, function: &str, status: Status) -> Result<()> {
        status
            .ok()
            .map_err(|status| self.failed(format!("{} ({function}): {}", self.name(), self.api.name(status))))
    }

    fn check(&self, function: &str, status: Status, call: &GemmCall) -> Result<()> {
        status.ok().map_err(|status| {
            let GemmCall { rows, inputs, columns, dtype, .. } = call;
            self.failed(format!(
                "{} ({function}, {rows} x {inputs} x {columns} in {dtype}): {}",
                self.name(),
                self.api.name(status)
            ))
        })
    }
}

/// Descriptions that are given back on drop.
struct Made<'a> {
    api: &'a Api,
    product: Object,
    layouts: Vec<Object>,
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        // SAFETY: each was made by the library, and is given back once.
        unsafe {
            if !self.product.is_null() {
                let _ = (self.api.product_destroy)(self.product);
            }
            for &layout in &self.layouts {
                let _ = (self.api.layout_destroy)(layout);
            }
        }
    }
}

struct Preference<'a> {
    api: &'a Api,
    object: Object,
}

impl Drop for Preference<'_> {
    fn drop(&mut self) {
        if !self.object.is_null() {
            // SAFETY: made by the library, given back once.
            let _ = unsafe { (self.api.preference_destroy)(self.object) };
        }
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        let plans = self.plans.get_mut().unwrap_or_else(PoisonError::into_inner);
        for plan in plans.drain().filter_map(|(_, plan)| plan) {
            drop(Made { api: &self.api, product: plan.product, layouts: plan.layouts.to_vec() });
        }
        // SAFETY: made by the library, given back once.
        let _ = unsafe { (self.api.destroy)(self.handle) };
    }
}
