//! Launches recorded once and started together.

use super::super::{Fault, Graph, Result, recorded};
use super::State;
use super::call::{Captured, Executable, driver};
use cudarc::driver::sys::CUstreamCaptureMode;
use std::sync::{Arc, PoisonError};

#[derive(Debug)]
struct Recorded {
    executable: Executable,
    state: Arc<State>,
}

impl Graph for Recorded {
    fn replay(&self) -> Result<()> {
        let turn = self.state.turn()?;
        driver!(cuGraphLaunch(self.executable.0, turn.stream))
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // For the executable, which follows.
        let _ = self.state.context.bind();
    }
}

/// Records what `work` launches. What is given back meanwhile is freed afterwards: a free would become part of the graph.
pub(super) fn record(
    state: &Arc<State>,
    work: &mut dyn FnMut() -> Result<()>,
) -> Result<Box<dyn Graph>> {
    if state.records_here() {
        return Err(Fault::Failed {
            call: "record",
            detail: "already recording".to_owned(),
        });
    }
    let stream = state.stream.0;
    state.context.bind()?;
    let _alone = state.turns.write().unwrap_or_else(PoisonError::into_inner);
    state.start_recording();
    // Relaxed: cuBLAS loads a kernel when it first uses it, which the other modes may refuse.
    let begun = driver!(cuStreamBeginCapture_v2(
        stream,
        CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED
    ));
    let end = || {
        let captured = Captured::create(|graph| driver!(cuStreamEndCapture(stream, graph)));
        state.end_recording();
        captured
    };
    let captured = match begun {
        Ok(()) => recorded(work, end)?,
        Err(fault) => {
            state.end_recording();
            return Err(fault);
        }
    };
    if captured.0.is_null() {
        return Err(Fault::Failed {
            call: "cuStreamEndCapture",
            detail: "nothing was recorded".to_owned(),
        });
    }
    let executable =
        Executable::create(|made| driver!(cuGraphInstantiateWithFlags(made, captured.0, 0)))?;
    Ok(Box::new(Recorded {
        executable,
        state: state.clone(),
    }))
}
