//! A safe face for the `gemm` crate's strided matrix product, on one thread.

/// A matrix in a slice: element (i, j) at `i * row + j * column`.
#[derive(Clone, Copy)]
pub struct MatrixView<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub column: usize,
}

impl<'a> MatrixView<'a> {
    /// Rows of `width` elements, one after the other.
    pub fn rows(data: &'a [f32], width: usize) -> Self {
        Self {
            data,
            row: width,
            column: 1,
        }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            row: self.column,
            column: self.row,
        }
    }
}

/// out [m, n] = (or +=, with `add`) lhs [m, k] * rhs [k, n]; `out` has rows of `stride` elements.
#[allow(unsafe_code)]
pub fn product(
    shape: (usize, usize, usize),
    out: &mut [f32],
    stride: usize,
    add: bool,
    lhs: MatrixView,
    rhs: MatrixView,
) {
    let (m, n, k) = shape;
    if m == 0 || n == 0 {
        return;
    }
    let last = |view: MatrixView, rows: usize, columns: usize| {
        (rows - 1) * view.row + (columns - 1) * view.column
    };
    assert!(
        stride >= n && (m - 1) * stride + n <= out.len(),
        "output too short"
    );
    assert!(
        k == 0 || last(lhs, m, k) < lhs.data.len(),
        "left side too short"
    );
    assert!(
        k == 0 || last(rhs, k, n) < rhs.data.len(),
        "right side too short"
    );
    // SAFETY: the three assertions bound every address that the strides can reach; `out` is borrowed
    // mutably and so overlaps neither input.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            stride as isize,
            add,
            lhs.data.as_ptr(),
            lhs.column as isize,
            lhs.row as isize,
            rhs.data.as_ptr(),
            rhs.column as isize,
            rhs.row as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
