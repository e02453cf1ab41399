// The kernel under test: grouped-query attention in float32, one row at a time with online softmax.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

struct Sizes {
    size_t batch, heads, kv_heads, rows, keys, head_dim, v_head_dim;
    bool heads_last;  // (batch, length, heads, dim) in place of (batch, heads, length, dim)
    size_t at(size_t b, size_t head, size_t of_heads, size_t i, size_t of_length) const {
        return heads_last ? (b * of_length + i) * of_heads + head : (b * of_heads + head) * of_length + i;
    }
};

inline void attention(const Sizes& n, const float* q, const float* k, const float* v, float scale, bool causal, float* output, float* lse) {
    for (size_t row = 0; row < n.batch * n.heads * n.rows; ++row) {
        size_t i = row % n.rows, head = row / n.rows % n.heads, b = row / n.rows / n.heads, kv_head = head / (n.heads / n.kv_heads);
        size_t own = n.at(b, head, n.heads, i, n.rows), last = causal ? n.keys - n.rows + i + 1 : n.keys;
        float top = -INFINITY, sum = 0;
        std::vector<float> o(n.v_head_dim, 0.f);
        for (size_t j = 0; j < last; ++j) {
            size_t other = n.at(b, kv_head, n.kv_heads, j, n.keys);
            float score = 0;
            for (size_t d = 0; d < n.head_dim; ++d) score += q[own * n.head_dim + d] * k[other * n.head_dim + d];
            float next = std::max(top, score *= scale), shrink = std::exp(top - next), weight = std::exp(score - next);
            sum = sum * shrink + weight, top = next;
            for (size_t e = 0; e < n.v_head_dim; ++e) o[e] = o[e] * shrink + weight * v[other * n.v_head_dim + e];
        }
        for (size_t e = 0; e < n.v_head_dim; ++e) output[own * n.v_head_dim + e] = o[e] / sum;
        lse[row] = top + std::log(sum);  // (batch, heads, rows) in every layout
    }
}
