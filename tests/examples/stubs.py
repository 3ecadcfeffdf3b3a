"""Stand-ins of TensorRT and CUDA for the C++ loop: the same names, on the CPU.

An engine is the text "plan"; it computes `logits[k] = (k + 1) * mean(images)`. The real headers are tried when the
variable EDGEKD_TENSORRT_INCLUDE names their folder.
"""

CUDA_H = r"""
#pragma once
#include <cstdlib>
#include <cstring>
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
struct cudaDeviceProp { char name[256]; int major, minor, multiProcessorCount; };
inline const char* cudaGetErrorString(cudaError_t) { return "some error"; }
inline cudaError_t cudaMalloc(void** p, size_t n) { *p = std::malloc(n); return cudaSuccess; }
inline cudaError_t cudaFree(void* p) { std::free(p); return cudaSuccess; }
inline cudaError_t cudaGetDevice(int* d) { *d = 0; return cudaSuccess; }
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
    std::strcpy(p->name, "Orin"); p->major = 8; p->minor = 7; p->multiProcessorCount = 16; return cudaSuccess;
}
inline cudaError_t cudaStreamCreate(cudaStream_t* s) { *s = std::malloc(1); return cudaSuccess; }
inline cudaError_t cudaStreamDestroy(cudaStream_t s) { std::free(s); return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t n, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(to, from, n); return cudaSuccess;
}
"""

TENSORRT_H = r"""
#pragma once
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
inline int getInferLibVersion() { return 100300; }
namespace nvinfer1 {
enum class DataType { kFLOAT, kHALF };
struct Dims { int32_t nbDims; int64_t d[8]; };
struct Dims4 : Dims { Dims4(int64_t a, int64_t b, int64_t c, int64_t e) : Dims{4, {a, b, c, e}} {} };
class ILogger {
public:
    enum class Severity { kINTERNAL_ERROR, kERROR, kWARNING };
    virtual void log(Severity, const char*) noexcept = 0;
};
class IExecutionContext {
public:
    bool setInputShape(const char*, const Dims& shape) { shape_ = shape; return shape.d[0] == 1; }
    Dims getTensorShape(const char*) { return Dims{2, {1, 4}}; }
    bool setTensorAddress(const char* name, void* place) { places_[name] = place; return true; }
    bool enqueueV3(void*) {
        const float* images = static_cast<float*>(places_.at("images"));
        float* logits = static_cast<float*>(places_.at("logits"));
        double sum = 0;
        const int64_t count = shape_.d[1] * shape_.d[2] * shape_.d[3];
        for (int64_t i = 0; i < count; ++i) sum += images[i];
        for (int k = 0; k < 4; ++k) logits[k] = static_cast<float>((k + 1) * sum / count);
        return true;
    }
private:
    Dims shape_{};
    std::map<std::string, void*> places_;
};
class ICudaEngine {
public:
    IExecutionContext* createExecutionContext() { return new IExecutionContext; }
    DataType getTensorDataType(const char*) { return DataType::kFLOAT; }
};
class IRuntime {
public:
    ICudaEngine* deserializeCudaEngine(const void* data, size_t size) {
        return std::string(static_cast<const char*>(data), size) == "plan" ? new ICudaEngine : nullptr;
    }
};
inline IRuntime* createInferRuntime(ILogger&) { return new IRuntime; }
}
"""
