// From 8-bit RGB pixels to the network's input, equal to the pixels and tensors of training (Pillow's resize).
//
// The same arithmetic as edgekd_runtime/preprocess.py and resize.py, whose comments say why. Compile it with
// -ffp-contract=off: a fused multiply-add rounds once where training rounded twice.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "json.hpp"

namespace edgekd {

struct Image {  // rows of RGB pixels
    int height = 0, width = 0;
    std::vector<std::uint8_t> pixels;
};

struct Preprocessing {
    int height = 0, width = 0;
    std::vector<double> mean, std;
    std::string interpolation, channel_order;
    double crop_fraction = 1;

    static Preprocessing from(const Json& data) {
        Preprocessing found;
        found.height = data["size"].list().at(0).integer();
        found.width = data["size"].list().at(1).integer();
        for (const Json& value : data["mean"].list()) found.mean.push_back(value.number());
        for (const Json& value : data["std"].list()) found.std.push_back(value.number());
        found.interpolation = data["interpolation"].text();
        found.channel_order = data["channel_order"].text();
        found.crop_fraction = data["crop_fraction"].number();
        if (found.mean.size() != found.std.size() || (found.mean.size() != 1 && found.mean.size() != 3)) {
            throw std::runtime_error("preprocessing: expected mean and std of 1 or 3 channels");
        }
        return found;
    }

    int channels() const { return static_cast<int>(mean.size()); }
};

namespace detail {

constexpr int kBits = 32 - 8 - 2;  // of the fraction of a coefficient

inline double sinc(double x) { return x == 0.0 ? 1.0 : std::sin(x * M_PI) / (x * M_PI); }

inline double weight(const std::string& name, double x) {
    if (name == "lanczos") return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
    x = std::fabs(x);
    if (name == "bilinear") return std::max(0.0, 1.0 - x);
    const double a = -0.5;  // bicubic
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

struct Planes {  // (height, width, channels) uint8
    int height, width, channels;
    std::vector<std::uint8_t> values;
    std::uint8_t& at(int y, int x, int c) { return values[(static_cast<std::size_t>(y) * width + x) * channels + c]; }
};

// One axis resampled to `size` in fixed point; `vertical` chooses the axis.
inline Planes resampled(Planes& image, int size, bool vertical, const std::string& name) {
    const int size_in = vertical ? image.height : image.width;
    if (size == size_in) return image;
    Planes found{vertical ? size : image.height, vertical ? image.width : size, image.channels, {}};
    found.values.resize(static_cast<std::size_t>(found.height) * found.width * found.channels);
    const double scale = static_cast<double>(size_in) / size, stretch = std::max(scale, 1.0);
    const double support = (name == "bilinear" ? 1.0 : name == "bicubic" ? 2.0 : 3.0) * stretch;
    std::vector<double> values;
    std::vector<std::int32_t> fixed;
    for (int position = 0; position < size; ++position) {
        const double centre = (position + 0.5) * scale;
        const int first = std::max(0, static_cast<int>(centre - support + 0.5));
        const int last = std::min(size_in, static_cast<int>(centre + support + 0.5));
        values.clear();
        fixed.clear();
        double total = 0;
        for (int i = first; i < last; ++i) {
            values.push_back(weight(name, (i - centre + 0.5) * (1.0 / stretch)));
            total += values.back();
        }
        for (const double value : values) {
            const double share = (total != 0.0 ? value / total : value) * (1 << kBits);
            fixed.push_back(static_cast<std::int32_t>(share < 0 ? share - 0.5 : share + 0.5));
        }
        const int others = vertical ? image.width : image.height;
        for (int other = 0; other < others; ++other) {
            for (int c = 0; c < image.channels; ++c) {
                std::int32_t sum = 1 << (kBits - 1);
                for (int i = first; i < last; ++i) {
                    sum += (vertical ? image.at(i, other, c) : image.at(other, i, c)) * fixed[i - first];
                }
                const auto clipped = static_cast<std::uint8_t>(std::clamp(sum >> kBits, 0, 255));
                (vertical ? found.at(position, other, c) : found.at(other, position, c)) = clipped;
            }
        }
    }
    return found;
}

inline Planes nearest(Planes& image, int height, int width) {
    const auto steps = [](int size_in, int size) {  // added up, as Pillow does it
        std::vector<int> found;
        const double scale = static_cast<double>(size_in) / size;
        double at = scale * 0.5;
        for (int i = 0; i < size; ++i, at += scale) found.push_back(std::min(static_cast<int>(at), size_in - 1));
        return found;
    };
    const std::vector<int> rows = steps(image.height, height), columns = steps(image.width, width);
    Planes found{height, width, image.channels, {}};
    found.values.resize(static_cast<std::size_t>(height) * width * image.channels);
    for (int y = 0; y < height; ++y)
        for (int x = 0; x < width; ++x)
            for (int c = 0; c < image.channels; ++c) found.at(y, x, c) = image.at(rows[y], columns[x], c);
    return found;
}

inline Planes resized(Planes image, int height, int width, const std::string& name) {
    if (name == "nearest") return nearest(image, height, width);
    const bool first = height < image.height && image.height - height > 2 * (image.width - width);
    Planes once = resampled(image, first ? height : width, first, name);
    return resampled(once, first ? width : height, !first, name);
}

}  // namespace detail

// (C, H, W) float32.
inline std::vector<float> preprocess(const Image& image, const Preprocessing& p) {
    if (image.pixels.size() != static_cast<std::size_t>(image.height) * image.width * 3 || image.pixels.empty()) {
        throw std::runtime_error("preprocessing: expected rows of RGB pixels");
    }
    detail::Planes planes{image.height, image.width, p.channels(), {}};
    if (p.channels() == 3) {
        planes.values = image.pixels;
    } else {
        for (std::size_t i = 0; i < image.pixels.size(); i += 3) {
            const int luma = image.pixels[i] * 19595 + image.pixels[i + 1] * 38470 + image.pixels[i + 2] * 7471;
            planes.values.push_back(static_cast<std::uint8_t>((luma + 0x8000) >> 16));
        }
    }
    const int canvas_h = static_cast<int>(std::floor(p.height / p.crop_fraction));
    const int canvas_w = static_cast<int>(std::floor(p.width / p.crop_fraction));
    int height, width;  // that just cover the canvas
    if (canvas_h == canvas_w && image.height <= image.width) {
        height = canvas_h;
        width = static_cast<int>(static_cast<double>(canvas_h) * image.width / image.height);
    } else if (canvas_h == canvas_w) {
        width = canvas_h;
        height = static_cast<int>(static_cast<double>(canvas_h) * image.height / image.width);
    } else {
        const double ratio = std::min(static_cast<double>(image.height) / canvas_h, static_cast<double>(image.width) / canvas_w);
        height = static_cast<int>(std::nearbyint(image.height / ratio));
        width = static_cast<int>(std::nearbyint(image.width / ratio));
    }
    planes = detail::resized(planes, height, width, p.interpolation);
    const int top = static_cast<int>(std::nearbyint((height - p.height) / 2.0));  // halves to even
    const int left = static_cast<int>(std::nearbyint((width - p.width) / 2.0));
    std::vector<float> found;
    found.reserve(static_cast<std::size_t>(p.channels()) * p.height * p.width);
    for (int c = 0; c < p.channels(); ++c) {
        const float scale = static_cast<float>(1.0 / (255.0 * p.std[c]));
        const float shift = static_cast<float>(-p.mean[c] / p.std[c]);
        const int source = p.channel_order == "BGR" ? p.channels() - 1 - c : c;
        for (int y = 0; y < p.height; ++y) {
            for (int x = 0; x < p.width; ++x) {
                const float scaled = static_cast<float>(planes.at(top + y, left + x, source)) * scale;
                found.push_back(scaled + shift);
            }
        }
    }
    return found;
}

}  // namespace edgekd
