/* libmdprune_tensorrt: the TensorRT plug-in `GatherConv`, whose nodes read the weights of a bundle.
 *
 * An engine that `mdprune` models were built into holds no weights of these nodes, only the hash of
 * the weight file. The plug-in looks for the file in the bundles that it was told of, by
 * `mdprune_tensorrt_add_bundle` or by the environment variable MDPRUNE_BUNDLE (directories with ':'
 * between them), and uploads it once per process, device and precision, however many engines and
 * contexts read it. Tell it before an engine is built or deserialised:
 *
 *     nvinfer1::IRuntime* runtime = nvinfer1::createInferRuntime(logger);
 *     runtime->getPluginRegistry().loadLibrary("libmdprune_tensorrt.so");
 *     mdprune_tensorrt_add_bundle("bundle");   // or MDPRUNE_BUNDLE=bundle
 *
 * Bundles must stay where they are until the engines are gone. Functions may be called from any
 * thread.
 */

#ifndef MDPRUNE_TENSORRT_H
#define MDPRUNE_TENSORRT_H

#ifdef __cplusplus
extern "C" {
#endif

/* Adds a bundle's directory. Returns 0, or -1 if there is no such directory. */
int mdprune_tensorrt_add_bundle(const char* directory);

#ifdef __cplusplus
}
#endif

#endif
