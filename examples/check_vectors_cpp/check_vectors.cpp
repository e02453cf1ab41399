// A kernel checked against golden vectors without Python: every element of the expected result carries the error it may have.
//
//     refattn vectors make vectors --pack gqa --format raw
//     g++ -O2 check_vectors.cpp -o check_vectors && ./check_vectors vectors/*/
#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include "attention.hpp"

template <class T> std::vector<T> load(const std::string& file) {
    std::ifstream in(file, std::ios::binary | std::ios::ate);
    std::vector<T> data(in ? size_t(in.tellg()) / sizeof(T) : 0);
    in.seekg(0).read(reinterpret_cast<char*>(data.data()), data.size() * sizeof(T));
    return data;
}
size_t beyond(const std::vector<float>& got, const std::vector<double>& expected, const std::vector<double>& bound) {
    size_t count = got.size() != expected.size();
    for (size_t n = 0; n < got.size() && n < expected.size(); ++n)
        count += !(got[n] == expected[n] || std::abs(got[n] - expected[n]) <= bound[n] || (got[n] != got[n] && expected[n] != expected[n]));
    return count;
}
int main(int argc, char** argv) {
    int failed = 0, checked = 0;
    for (int n = 1; n < argc; ++n) {
        std::string dir = std::string(argv[n]) + "/", line, word, name, dtype;
        std::map<std::string, std::string> facts;          // "scale 0.25", "causal 1", ...
        std::map<std::string, std::vector<size_t>> shape;  // "array query float32 4 2 6 5 16": name, dtype, rank, sizes
        for (std::ifstream text(dir + "case.txt"); std::getline(text, line);) {
            std::istringstream words(line);
            size_t rank;
            if (words >> word && word != "array") std::getline(words >> std::ws, facts[word]);
            else { words >> name >> dtype >> rank; shape[name].resize(rank); for (size_t& size : shape[name]) words >> size; }
        }
        if (facts.size() != 5 || facts["function"] != "attention") continue;  // options this kernel does not have
        auto &q = shape["query"], &k = shape["key"], &v = shape["value"];
        std::vector<float> output(q[0] * q[1] * q[2] * v[3]), lse(q[0] * q[1] * q[2]);
        attention({q[0], q[1], k[1], q[2], k[2], q[3], v[3]}, load<float>(dir + "query.bin").data(), load<float>(dir + "key.bin").data(),
                  load<float>(dir + "value.bin").data(), std::stof(facts["scale"]), facts["causal"] == "1", output.data(), lse.data());
        size_t wrong = beyond(output, load<double>(dir + "expected_output.bin"), load<double>(dir + "output_bound.bin"))
                     + beyond(lse, load<double>(dir + "expected_lse.bin"), load<double>(dir + "lse_bound.bin"));
        std::printf("%-32s %zu wrong\n", facts["name"].c_str(), wrong);
        failed += wrong > 0, ++checked;
    }
    std::printf("%d of %d cases are right\n", checked - failed, checked);
    return failed || !checked;
}
