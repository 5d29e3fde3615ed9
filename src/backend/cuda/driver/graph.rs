//! Recording launches as a graph.

use std::sync::Arc;

use super::api::{CUgraph, CUgraphExec};
use super::{Inner, lock};
use crate::error::Result;

/// A recorded sequence of launches.
pub struct Graph {
    pub(super) inner: Arc<Inner>,
    pub(super) exec: CUgraphExec,
}

// SAFETY: as for `Inner`.
unsafe impl Send for Graph {}

impl Graph {
    /// What was recorded, made executable.
    pub(super) fn new(inner: &Arc<Inner>, recording: Recording<'_>) -> Result<Self> {
        let recorded = recording.end()?;
        let mut exec: CUgraphExec = std::ptr::null_mut();
        // SAFETY: writes an executable graph; the recorded one is there, and destroyed once.
        let code = unsafe {
            let code = (inner.api.graph_instantiate)(&raw mut exec, recorded, 0);
            let _ = (inner.api.graph_destroy)(recorded);
            code
        };
        inner.check("cannot make the recorded graph executable", code)?;
        Ok(Self { inner: Arc::clone(inner), exec })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.inner.enter().is_ok() {
            // SAFETY: made in this context, destroyed once; the driver lets a running one end.
            let _ = unsafe { (self.inner.api.graph_exec_destroy)(self.exec) };
        }
    }
}

/// A recording under way; ended on drop, also when the work that is recorded fails or panics.
pub(super) struct Recording<'a> {
    inner: &'a Inner,
    begun: bool,
}

impl<'a> Recording<'a> {
    pub(super) fn begin(inner: &'a Inner) -> Result<Self> {
        let mut late = lock(&inner.recording);
        if late.is_some() {
            drop(late);
            return Err(inner.defect("capture", "not possible while a graph is being recorded"));
        }
        *late = Some(Vec::new());
        drop(late);
        let mut recording = Self { inner, begun: false };
        inner.enter()?;
        // Other threads go on as they like.
        const THREAD_LOCAL: u32 = 1;
        // SAFETY: the stream lives as long as `inner`.
        let code = unsafe { (inner.api.capture_begin)(inner.stream, THREAD_LOCAL) };
        inner.check("cannot begin to record a graph", code)?;
        recording.begun = true;
        Ok(recording)
    }

    /// What was recorded; to be destroyed by the caller.
    fn end(mut self) -> Result<CUgraph> {
        self.begun = false;
        self.inner.enter()?;
        let mut graph: CUgraph = std::ptr::null_mut();
        // SAFETY: writes a graph, or null; the recording began on this stream and thread.
        let code = unsafe { (self.inner.api.capture_end)(self.inner.stream, &raw mut graph) };
        self.inner.check("cannot record a graph", code)?;
        Ok(graph)
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        let Inner { api, stream, .. } = self.inner;
        if self.begun && self.inner.enter().is_ok() {
            let mut graph: CUgraph = std::ptr::null_mut();
            // SAFETY: as in `end`; the graph is destroyed if there is one.
            unsafe {
                let _ = (api.capture_end)(*stream, &raw mut graph);
                if !graph.is_null() {
                    let _ = (api.graph_destroy)(graph);
                }
            }
        }
        let late = lock(&self.inner.recording).take().unwrap_or_default();
        for address in late {
            self.inner.free(address);
        }
    }
}
