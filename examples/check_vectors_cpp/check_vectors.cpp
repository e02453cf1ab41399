// A kernel checked against golden vectors without Python: every element of the expected result carries the error it may have.
// What the files hold is written down in refattn/oracle/vectors/README.md.
//
//     refattn vectors make vectors --pack gqa --format raw          or   --shape 2x32/8x512 --tile 64 --layout BSHD --format raw
//     g++ -O2 check_vectors.cpp -o check_vectors && ./check_vectors vectors/*/
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include "attention.hpp"

struct Case {
    std::string dir, layout, left_out;                      // left_out: why this kernel cannot run it
    std::map<std::string, std::string> facts, dtype;        // "scale 0.25", "causal 1", ...
    std::map<std::string, std::vector<size_t>> shape;       // "array query float32 4 2 6 5 16": name, dtype, rank, sizes

    explicit Case(const std::string& directory) : dir(directory + "/") {
        std::string line, word, name;
        for (std::ifstream text(dir + "case.txt"); std::getline(text, line);) {
            std::istringstream words(line);
            size_t rank;
            if (words >> word && word != "array") std::getline(words >> std::ws, facts[word]);
            else { words >> name >> dtype[name] >> rank; shape[name].resize(rank); for (size_t& size : shape[name]) words >> size; }
        }
        layout = facts.count("layout") ? facts["layout"] : shape["query"].size() == 3 ? "HTD" : "BHTD";
        const std::set<std::string> known{"refattn-case", "name", "function", "scale", "causal", "layout", "expected_rows"};
        for (auto& fact : facts) if (!known.count(fact.first)) left_out = "it has no " + fact.first;
        if (facts["refattn-case"] != "1" && facts["refattn-case"] != "2") left_out = "its version is " + facts["refattn-case"];
        if (facts["function"] != "attention") left_out = "it is not " + facts["function"];
        for (auto name : {"query", "key", "value"}) if (dtype[name] != "float32" && dtype[name] != "bfloat16") left_out = "it reads no " + dtype[name];
    }
    size_t size(const std::string& name, char axis) { size_t at = layout.find(axis); return at == std::string::npos ? 1 : shape[name].at(at); }
    template <class T> std::vector<T> load(const std::string& name) {
        std::ifstream in(dir + name + ".bin", std::ios::binary | std::ios::ate);
        std::vector<T> data(in ? size_t(in.tellg()) / sizeof(T) : 0);
        in.seekg(0).read(reinterpret_cast<char*>(data.data()), data.size() * sizeof(T));
        return data;
    }
    std::vector<float> numbers(const std::string& name) {
        if (dtype[name] == "float32") return load<float>(name);
        std::vector<float> wide;
        for (uint32_t bits : load<uint16_t>(name)) { float x; bits <<= 16; std::memcpy(&x, &bits, 4); wide.push_back(x); }
        return wide;
    }
    // How many elements of a result are beyond their bounds; prints the first and the worst. `rows` is the axis that counts them.
    size_t beyond(const char* result, const std::vector<float>& got, size_t axis, size_t rows) {
        auto& sizes = shape[std::string("expected_") + result];
        auto expected = load<double>(std::string("expected_") + result), bound = load<double>(result + std::string("_bound"));
        auto picked = load<int64_t>("expected_rows");  // empty: all rows are judged
        size_t inner = 1, count = 0, first = 0, worst = 0;
        double most = -1;
        for (size_t a = axis + 1; a < sizes.size(); ++a) inner *= sizes[a];
        auto place = [&](size_t n) {  // of element n of the judged rows in the whole result
            size_t r = n / inner % sizes[axis], row = picked.empty() ? r : size_t(picked[r]);
            return (n / inner / sizes[axis] * rows + row) * inner + n % inner;
        };
        for (size_t n = 0; n < expected.size(); ++n) {
            double x = got.at(place(n)), off = std::abs(x - expected[n]);
            if (x == expected[n] || off <= bound[n] || (x != x && expected[n] != expected[n])) continue;
            if (!count++) first = n;
            double use = off == off ? off / bound[n] : INFINITY;
            if (use > most) most = use, worst = n;
        }
        for (size_t n : count ? std::vector<size_t>{first, worst} : std::vector<size_t>{}) {
            std::string where;
            for (size_t left = place(n), a = sizes.size(); a-- > 0; left /= a == axis ? rows : sizes[a])
                where = std::to_string(left % (a == axis ? rows : sizes[a])) + (where.empty() ? "" : ", ") + where;
            std::printf("  %s[%s]: got %.9g, expected %.9g, bound %.3g\n", result, where.c_str(), got[place(n)], expected[n], bound[n]);
        }
        if (count) std::printf("  %s: %zu of %zu elements differ; above the first and the worst\n", result, count, expected.size());
        return count;
    }
};
int main(int argc, char** argv) {
    int failed = 0, checked = 0;
    for (int n = 1; n < argc; ++n) {
        Case c(argv[n]);
        if (!c.left_out.empty()) { std::printf("%s left out: %s\n", c.facts["name"].c_str(), c.left_out.c_str()); continue; }
        Sizes z{c.size("query", 'B'), c.size("query", 'H'), c.size("key", 'H'), c.size("query", 'T'), c.size("key", 'T'),
                c.size("query", 'D'), c.size("value", 'D'), c.layout.find('T') < c.layout.find('H')};
        std::vector<float> output(z.batch * z.heads * z.rows * z.v_head_dim), lse(z.batch * z.heads * z.rows);
        attention(z, c.numbers("query").data(), c.numbers("key").data(), c.numbers("value").data(), std::stof(c.facts["scale"]),
                  c.facts["causal"] == "1", output.data(), lse.data());
        size_t wrong = c.beyond("output", output, c.layout.find('T'), z.rows) + c.beyond("lse", lse, c.shape["expected_lse"].size() - 1, z.rows);
        std::printf("%s %s\n", c.facts["name"].c_str(), wrong ? "WRONG" : "right");
        failed += wrong > 0, ++checked;
    }
    std::printf("%d of %d cases are right\n", checked - failed, checked);
    return failed || !checked;
}
