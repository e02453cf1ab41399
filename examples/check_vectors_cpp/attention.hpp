// The kernel under test: grouped-query attention in float32, one row at a time with online softmax.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

struct Sizes { size_t batch, heads, kv_heads, rows, keys, head_dim, v_head_dim; };

inline void attention(const Sizes& n, const float* q, const float* k, const float* v, float scale, bool causal, float* output, float* lse) {
    for (size_t row = 0; row < n.batch * n.heads * n.rows; ++row) {
        size_t i = row % n.rows, kv_head = row / n.rows / (n.heads / n.kv_heads), last = causal ? n.keys - n.rows + i + 1 : n.keys;
        float top = -INFINITY, sum = 0;
        std::vector<float> o(n.v_head_dim, 0.f);
        for (size_t j = kv_head * n.keys; j < kv_head * n.keys + last; ++j) {
            float score = 0;
            for (size_t d = 0; d < n.head_dim; ++d) score += q[row * n.head_dim + d] * k[j * n.head_dim + d];
            float next = std::max(top, score *= scale), shrink = std::exp(top - next), weight = std::exp(score - next);
            sum = sum * shrink + weight, top = next;
            for (size_t e = 0; e < n.v_head_dim; ++e) o[e] = o[e] * shrink + weight * v[j * n.v_head_dim + e];
        }
        for (size_t e = 0; e < n.v_head_dim; ++e) output[row * n.v_head_dim + e] = o[e] / sum;
        lse[row] = top + std::log(sum);
    }
}
