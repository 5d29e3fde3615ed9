//! After its first step the sampler's loop allocates nothing. A test binary of its own, because it
//! counts every allocation of the process.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};

use lacuna::backend::Confidence;
use lacuna::sample::{Canvas, CountSchedule, Limits, Observer, Order, Request, Sampler, Step};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise about `ptr` and `layout` is passed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations seen at each step.
struct Watch(Vec<usize>);

impl Observer for Watch {
    fn step(&mut self, _: Step<'_>) -> ControlFlow<()> {
        self.0.push(ALLOCATIONS.load(Ordering::Relaxed));
        ControlFlow::Continue(())
    }
}

#[test]
fn the_step_loop_allocates_nothing_after_its_first_step() {
    for dir in ["golden/gpt2-tiny", "golden/llama-tiny"] {
        let model = common::load(&common::fixture(dir), 2);
        let confident = Order::Confidence {
            by: Confidence::MaxProb,
            schedule: CountSchedule::Linear,
            noise: 0.3,
            remask: true,
        };
        for order in [Order::Random, confident, Order::Threshold { by: Confidence::Margin, tau: 0.9 }] {
            let mut request = Request::new(Canvas::prefix(&[1], 40));
            (request.mask_id, request.steps, request.order) = (Some(3), 20, order);
            request.stop_at_eos = false;
            let mut watch = Watch(Vec::with_capacity(100));
            let mut sampler = Sampler::new(model.clone(), Limits { sequences: 1, tokens: 41 }).unwrap();
            sampler.generate_with(&[request], &mut watch).unwrap();
            assert!(watch.0.len() > 5);
            let after_first = watch.0.last().unwrap() - watch.0[0];
            assert_eq!(after_first, 0, "{dir} {order:?}: allocations after the first step");
        }
    }
}
