// Attention in float32, checked against golden vectors without Python: every element carries the error it may have.
//
//     refattn vectors make vectors --pack gqa --format raw
//     c++ -std=c++17 -O2 check_vectors.cpp -o check_vectors && ./check_vectors vectors/*/
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

template <class T> std::vector<T> load(const std::string& file) {
    std::ifstream in(file, std::ios::binary | std::ios::ate);
    std::vector<T> data(in ? size_t(in.tellg()) / sizeof(T) : 0);
    in.seekg(0).read(reinterpret_cast<char*>(data.data()), data.size() * sizeof(T));
    return data;
}
bool within(double x, double expected, double bound) { return x == expected || std::abs(x - expected) <= bound || (x != x && expected != expected); }

int main(int argc, char** argv) {
    int failed = 0, checked = 0;
    for (int n = 1; n < argc; ++n) {
        std::string dir = std::string(argv[n]) + "/", line, word, name, dtype;
        std::map<std::string, std::string> facts;
        std::map<std::string, std::vector<size_t>> shape;
        for (std::ifstream text(dir + "case.txt"); std::getline(text, line);) {
            std::istringstream words(line);
            size_t rank;
            if (words >> word && word != "array") std::getline(words >> std::ws, facts[word]);
            else { words >> name >> dtype >> rank; shape[name].resize(rank); for (size_t& size : shape[name]) words >> size; }
        }
        if (facts.size() != 5 || facts["function"] != "attention") continue;  // options this kernel does not have
        auto q = load<float>(dir + "query.bin"), k = load<float>(dir + "key.bin"), v = load<float>(dir + "value.bin");
        auto output = load<double>(dir + "expected_output.bin"), bound = load<double>(dir + "output_bound.bin");
        auto lse = load<double>(dir + "expected_lse.bin"), lse_bound = load<double>(dir + "lse_bound.bin");
        size_t B = shape["query"][0], H = shape["query"][1], T = shape["query"][2], D = shape["query"][3];
        size_t K = shape["key"][1], S = shape["key"][2], E = shape["value"][3], wrong = 0;
        float scale = std::stof(facts["scale"]);
        for (size_t row = 0; row < B * H * T; ++row) {  // one row of the output: online softmax over its keys
            size_t i = row % T, head = row / T / (H / K), last = facts["causal"] == "1" ? S - T + i + 1 : S;
            float top = -INFINITY, sum = 0;
            std::vector<float> o(E, 0.f);
            for (size_t j = 0; j < last; ++j) {
                float score = 0;
                for (size_t d = 0; d < D; ++d) score += q[row * D + d] * k[(head * S + j) * D + d];
                float next = std::max(top, score *= scale), shrink = std::exp(top - next), weight = std::exp(score - next);
                sum = sum * shrink + weight, top = next;
                for (size_t e = 0; e < E; ++e) o[e] = o[e] * shrink + weight * v[(head * S + j) * E + e];
            }
            for (size_t e = 0; e < E; ++e) wrong += !within(o[e] / sum, output[row * E + e], bound[row * E + e]);
            wrong += !within(top + std::log(sum), lse[row], lse_bound[row]);
        }
        std::printf("%-32s %zu wrong\n", facts["name"].c_str(), wrong);
        failed += wrong > 0, ++checked;
    }
    std::printf("%d of %d cases are right\n", checked - failed, checked);
    return failed || !checked;
}
