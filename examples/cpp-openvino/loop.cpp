// Classifies an image with the best ONNX engine of a bundle in OpenVINO, and times it.
//
//     loop BUNDLE IMAGE.ppm [CALLS]
#include <cstring>
#include <iostream>

#include <openvino/openvino.hpp>

#include "bundle.hpp"

int main(int count, char** arguments) try {
    if (count < 3) throw std::runtime_error("usage: loop BUNDLE IMAGE.ppm [CALLS]");
    const edgekd::Bundle bundle(arguments[1]);
    const edgekd::Json& engine = bundle.engine("onnx", "openvino");
    const std::string graph = bundle.read(engine["files"]["model.onnx"].text());

    ov::Core core;
    const std::shared_ptr<ov::Model> model = core.read_model(graph, ov::Tensor());
    ov::PartialShape shape = model->input(bundle.input).get_partial_shape();
    shape[0] = 1;  // one image a call, as it was measured
    model->reshape({{bundle.input, shape}});
    ov::CompiledModel compiled = core.compile_model(
        model, "CPU", ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
        ov::hint::inference_precision(ov::element::f32), ov::inference_num_threads(engine["threads"].integer()));
    ov::InferRequest request = compiled.create_infer_request();

    const std::vector<float> images = edgekd::preprocess(edgekd::read_ppm(arguments[2]), bundle.preprocessing);
    const auto run = [&] {
        ov::Tensor input = request.get_tensor(bundle.input);
        if (input.get_size() != images.size()) throw std::runtime_error("the graph takes another input");
        std::memcpy(input.data<float>(), images.data(), images.size() * sizeof(float));
        request.infer();
        const ov::Tensor output = request.get_tensor(bundle.output);
        return std::vector<float>(output.data<float>(), output.data<float>() + output.get_size());
    };
    edgekd::print_classes(run(), bundle.labels);
    const int calls = count > 3 ? std::stoi(arguments[3]) : 0;
    if (calls > 0) std::printf("median %.3f ms of %d calls\n", edgekd::median_ms(calls, run), calls);
    return 0;
} catch (const std::exception& err) {
    std::cerr << "error: " << err.what() << "\n";
    return 2;
}
