// Classifies an image with the TensorRT engine of a bundle, and times it. TensorRT 8.6 to 11; not run on hardware yet.
//
//     loop BUNDLE IMAGE.ppm [CALLS]
//
// An engine is native code for one GPU and one TensorRT: it is loaded only if its digest is the one in the manifest and in
// its fingerprint, and if the fingerprint is that of this device. Exit code 3 says that it does not fit.
#include <cuda_runtime_api.h>

#include <NvInfer.h>
#include <iostream>
#include <map>
#include <memory>

#include "bundle.hpp"

namespace {

struct Misfit : std::runtime_error {
    using std::runtime_error::runtime_error;
};

class Logger : public nvinfer1::ILogger {
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kERROR) std::cerr << message << "\n";
    }
};

void check(cudaError_t code, const char* what) {
    if (code != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(code));
}

class DeviceMemory {
public:
    explicit DeviceMemory(std::size_t size) { check(cudaMalloc(&place_, size), "cudaMalloc"); }
    ~DeviceMemory() { cudaFree(place_); }
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;
    void* get() const { return place_; }

private:
    void* place_ = nullptr;
};

// "10.3.0": what is loaded, not what this was compiled with.
std::string library_version() {
    const int version = getInferLibVersion();
    const int major = version >= 10000 ? version / 10000 : version / 1000;
    const int rest = version - major * (version >= 10000 ? 10000 : 1000);
    return std::to_string(major) + "." + std::to_string(rest / 100) + "." + std::to_string(rest % 100);
}

// Throws unless the engine was built for this GPU and this TensorRT. Engines that are compatible with more are left to
// edgekd_runtime, whose rules are finer.
void require_fit(const edgekd::Json& fingerprint) {
    cudaDeviceProp device{};
    int number = 0;
    check(cudaGetDevice(&number), "cudaGetDevice");
    check(cudaGetDeviceProperties(&device, number), "cudaGetDeviceProperties");
    const std::string capability = std::to_string(device.major) + "." + std::to_string(device.minor);
    const std::map<std::string, std::string> here = {
        {"gpu", device.name}, {"compute_capability", capability}, {"tensorrt", library_version()}};
    for (const auto& [key, found] : here) {
        const std::string& built = fingerprint[key].text();
        // A recorded version may have a fourth number, which the library does not tell.
        const bool same = built == found || (key == "tensorrt" && built.rfind(found + ".", 0) == 0);
        if (!same) throw Misfit("the engine was built for " + key + " " + built + ", here is " + found);
    }
    if (fingerprint.has("multiprocessors") && !fingerprint["multiprocessors"].is_null() &&
        fingerprint["multiprocessors"].integer() != device.multiProcessorCount) {
        throw Misfit("the engine was built for a " + std::string(device.name) + " of another size");
    }
}

std::string own_engine(const edgekd::Bundle& bundle) {
    const edgekd::Json& entry = bundle.engine("tensorrt", "tensorrt");
    if (entry["fingerprint"].is_null()) throw Misfit("the engine has no fingerprint");
    const edgekd::Json fingerprint = edgekd::Json::parse(bundle.read(entry["fingerprint"].text()));
    require_fit(fingerprint);
    const std::string content = bundle.read(entry["files"]["model.engine"].text());
    if (edgekd::sha256(content) != fingerprint["engine_sha256"].text()) throw Misfit("the fingerprint is another engine's");
    return content;
}

}  // namespace

int main(int count, char** arguments) try {
    if (count < 3) throw std::runtime_error("usage: loop BUNDLE IMAGE.ppm [CALLS]");
    const edgekd::Bundle bundle(arguments[1]);
    const std::string content = own_engine(bundle);

    Logger logger;
    const std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(logger));
    const std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(content.data(), content.size()));
    if (!engine) throw std::runtime_error("TensorRT cannot read the engine");
    const std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
    if (!context) throw std::runtime_error("TensorRT has no memory for an execution context");

    const edgekd::Preprocessing& p = bundle.preprocessing;
    const std::vector<float> images = edgekd::preprocess(edgekd::read_ppm(arguments[2]), p);
    const char *input = bundle.input.c_str(), *output = bundle.output.c_str();
    for (const char* name : {input, output}) {
        if (engine->getTensorDataType(name) != nvinfer1::DataType::kFLOAT) {
            throw std::runtime_error("expected float32 inputs and outputs");
        }
    }
    if (!context->setInputShape(input, nvinfer1::Dims4{1, p.channels(), p.height, p.width})) {
        throw std::runtime_error("the engine was not built for one image of this size");
    }
    const nvinfer1::Dims shape = context->getTensorShape(output);
    std::size_t classes = 1;
    for (int i = 0; i < shape.nbDims; ++i) classes *= static_cast<std::size_t>(shape.d[i]);
    std::vector<float> logits(classes);

    const DeviceMemory input_memory(images.size() * sizeof(float)), output_memory(classes * sizeof(float));
    context->setTensorAddress(input, input_memory.get());
    context->setTensorAddress(output, output_memory.get());
    cudaStream_t stream = nullptr;
    check(cudaStreamCreate(&stream), "cudaStreamCreate");
    const auto run = [&] {
        check(cudaMemcpyAsync(input_memory.get(), images.data(), images.size() * sizeof(float), cudaMemcpyHostToDevice,
                              stream), "copy to the device");
        if (!context->enqueueV3(stream)) throw std::runtime_error("TensorRT could not run the engine");
        check(cudaMemcpyAsync(logits.data(), output_memory.get(), classes * sizeof(float), cudaMemcpyDeviceToHost,
                              stream), "copy from the device");
        check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
    };
    run();
    edgekd::print_classes(logits, bundle.labels);
    const int calls = count > 3 ? std::stoi(arguments[3]) : 0;
    if (calls > 0) std::printf("median %.3f ms of %d calls\n", edgekd::median_ms(calls, run), calls);
    cudaStreamDestroy(stream);
    return 0;
} catch (const Misfit& err) {
    std::cerr << "error: " << err.what() << "; build it again on this device (edgekd build)\n";
    return 3;
} catch (const std::exception& err) {
    std::cerr << "error: " << err.what() << "\n";
    return 2;
}
