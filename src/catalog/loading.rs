//! Says when much is read and thrown away again: a program can then have its allocator return it.

pub struct Loading(Option<fn(bool)>);

impl Loading {
    pub fn begin(hook: Option<fn(bool)>) -> Self {
        if let Some(hook) = hook {
            hook(true);
        }
        Loading(hook)
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        if let Some(hook) = self.0 {
            hook(false);
        }
    }
}
