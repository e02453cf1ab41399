//! The kernel under test: grouped-query attention in float32, one row at a time with online softmax.

pub struct Sizes {
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub rows: usize,
    pub keys: usize,
    pub head_dim: usize,
    pub v_head_dim: usize,
    pub heads_last: bool, // (batch, length, heads, dim) in place of (batch, heads, length, dim)
}

impl Sizes {
    fn at(&self, b: usize, head: usize, of_heads: usize, i: usize, of_length: usize) -> usize {
        if self.heads_last { (b * of_length + i) * of_heads + head } else { (b * of_heads + head) * of_length + i }
    }
}

/// Output in the order of the query's axes, and lse as (batch, heads, rows).
pub fn attention(n: &Sizes, q: &[f32], k: &[f32], v: &[f32], scale: f32, causal: bool) -> (Vec<f32>, Vec<f32>) {
    let count = n.batch * n.heads * n.rows;
    let (mut output, mut lse) = (vec![0.0; count * n.v_head_dim], vec![0.0; count]);
    for row in 0..count {
        let (i, head, b) = (row % n.rows, row / n.rows % n.heads, row / n.rows / n.heads);
        let own = n.at(b, head, n.heads, i, n.rows);
        let query = &q[own * n.head_dim..][..n.head_dim];
        let last = if causal { n.keys + i + 1 - n.rows } else { n.keys };
        let (mut top, mut sum, mut o) = (f32::NEG_INFINITY, 0.0, vec![0.0; n.v_head_dim]);
        for j in 0..last {
            let other = n.at(b, head / (n.heads / n.kv_heads), n.kv_heads, j, n.keys);
            let key = &k[other * n.head_dim..][..n.head_dim];
            let score = query.iter().zip(key).map(|(x, y)| x * y).sum::<f32>() * scale;
            let next = score.max(top);
            let (shrink, weight) = ((top - next).exp(), (score - next).exp());
            sum = sum * shrink + weight;
            top = next;
            for (x, value) in o.iter_mut().zip(&v[other * n.v_head_dim..]) {
                *x = *x * shrink + weight * value;
            }
        }
        for (x, weighted) in output[own * n.v_head_dim..].iter_mut().zip(&o) {
            *x = weighted / sum;
        }
        lse[row] = top + sum.ln();
    }
    (output, lse)
}
