// A bundle's folder in C++: files that were compared with the manifest, what to run, and classes from logits.
//
// A `model.edgekd` is a zip file: unpack it first (`unzip model.edgekd -d bundle`).
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <numeric>
#include <string>
#include <vector>

#include "json.hpp"
#include "preprocess.hpp"
#include "sha256.hpp"

namespace edgekd {

class Bundle {
public:
    explicit Bundle(const std::string& folder) : folder_(folder), manifest_(Json::parse(bytes("manifest.json"))) {
        if (manifest_["schema_version"].integer() != 2) throw std::runtime_error(folder + ": another bundle schema");
        deploy_ = Json::parse(read("deploy.json"));
        if (deploy_["schema_version"].integer() != 1) throw std::runtime_error(folder + ": another deploy.json schema");
        preprocessing = Preprocessing::from(deploy_["preprocessing"]);
        input = deploy_["input"]["name"].text();
        output = deploy_["outputs"].list().at(0)["name"].text();
        if (!deploy_["labels"].is_null()) {
            for (const Json& label : deploy_["labels"].list()) labels.push_back(label.text());
        }
    }

    // The bytes of a file, if they are the ones that the manifest lists.
    std::string read(const std::string& name) const {
        const std::string& wanted = manifest_["files"][name].text();
        std::string content = bytes(name);
        if (sha256(content) != wanted) throw std::runtime_error(folder_ + "/" + name + " was altered or cut off");
        return content;
    }

    // The best engine of a format that is meant for a runtime: an INT8 graph may be meant for another one alone, and be
    // slower than FP32 here.
    const Json& engine(const std::string& format, const std::string& runtime) const {
        for (const Json& entry : deploy_["engines"].list()) {
            if (entry["format"].text() != format) continue;
            for (const Json& name : entry["runtimes"].list()) {
                if (name.text() == runtime) return entry;
            }
        }
        throw std::runtime_error(folder_ + ": there is no engine of the format " + format + " for " + runtime);
    }

    Preprocessing preprocessing;
    std::string input, output;
    std::vector<std::string> labels;

private:
    std::string bytes(const std::string& name) const {
        std::ifstream stream(folder_ + "/" + name, std::ios::binary);
        if (!stream) throw std::runtime_error(folder_ + "/" + name + " cannot be read");
        return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    }

    std::string folder_;
    Json manifest_, deploy_;
};

// A binary PPM file (P6, 8 bits): raw RGB behind a line or two of text.
inline Image read_ppm(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    std::string magic;
    int most = 0;
    Image image;
    stream >> magic >> image.width >> image.height >> most;
    if (!stream || magic != "P6" || most != 255 || image.width < 1 || image.height < 1) {
        throw std::runtime_error(path + ": expected a binary PPM file with 8 bits per channel");
    }
    stream.get();
    image.pixels.resize(static_cast<std::size_t>(image.width) * image.height * 3);
    stream.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
    if (!stream) throw std::runtime_error(path + ": it ends too early");
    return image;
}

// Prints the best classes, best first, as "score<TAB>label".
inline void print_classes(const std::vector<float>& logits, const std::vector<std::string>& labels, int top = 5) {
    const double largest = *std::max_element(logits.begin(), logits.end());
    double total = 0;
    for (const float value : logits) total += std::exp(value - largest);
    std::vector<int> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    for (int i = 0; i < top && i < static_cast<int>(order.size()); ++i) {
        const int index = order[i];
        const std::string label = labels.empty() ? std::to_string(index) : labels.at(index);
        std::printf("%.4f\t%s\n", std::exp(logits[index] - largest) / total, label.c_str());
    }
}

// Median time of a call in ms, after a tenth as many calls to warm up.
template <typename Call>
double median_ms(int calls, Call call) {
    std::vector<double> times;
    for (int i = 0; i < calls / 10; ++i) call();
    for (int i = 0; i < calls; ++i) {
        const auto before = std::chrono::steady_clock::now();
        call();
        times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - before).count());
    }
    std::nth_element(times.begin(), times.begin() + calls / 2, times.end());
    return times[calls / 2];
}

}  // namespace edgekd
