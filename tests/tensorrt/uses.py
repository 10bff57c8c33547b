"""What scrd_fast uses of TensorRT's objects, by class; module attributes are found in the source.

A member that is set rather than called is listed too.
"""

# Of both flavours.
OBJECTS = {
    "Builder": ("build_serialized_network", "create_builder_config", "create_network",
                "create_optimization_profile"),
    "INetworkDefinition": ("get_layer", "num_layers"),
    "ILayer": ("get_input", "get_output", "num_inputs", "num_outputs", "set_input"),
    "ITensor": ("dtype", "name", "shape"),
    "OnnxParser": ("parse", "num_errors", "get_error"),
    "ParserError": ("node_name", "node_operator", "desc"),
    "IBuilderConfig": ("add_optimization_profile", "builder_optimization_level", "clear_flag",
                       "create_timing_cache", "get_timing_cache", "hardware_compatibility_level",
                       "profiling_verbosity", "progress_monitor", "set_flag",
                       "set_memory_pool_limit", "set_timing_cache"),
    "ITimingCache": ("serialize",),
    "IOptimizationProfile": ("set_shape",),
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed", "error_recorder"),
    "ICudaEngine": ("create_engine_inspector", "create_execution_context", "get_tensor_dtype",
                    "get_tensor_name", "get_tensor_profile_shape", "get_tensor_shape",
                    "num_io_tensors", "num_optimization_profiles"),
    "IExecutionContext": ("error_recorder", "execute_async_v3", "profiler", "set_input_shape",
                          "set_optimization_profile_async", "set_tensor_address"),
    "EngineInspector": ("execution_context", "get_engine_information"),
    "Refitter": ("get_missing_weights", "refit_cuda_engine"),
    "OnnxParserRefitter": ("refit_from_bytes",),
    # What the backend's own classes override.
    "ILogger": ("log",),
    "IErrorRecorder": ("clear", "get_error_code", "get_error_desc", "has_overflowed",
                       "num_errors", "report_error"),
    "IProgressMonitor": ("phase_finish", "phase_start", "step_complete"),
    "IProfiler": ("report_layer_time",),
}

# Of TensorRT alone.
TENSORRT_OBJECTS = {"INetworkDefinition": ("add_plugin",)}

# Of TensorRT for RTX alone.
RTX_OBJECTS = {
    "IBuilderConfig": ("num_compute_capabilities", "set_compute_capability"),
    "Runtime": ("get_engine_validity",),
    "ICudaEngine": ("create_runtime_config",),
    "IRuntimeConfig": ("create_runtime_cache", "dynamic_shapes_kernel_specialization_strategy",
                       "set_execution_context_allocation_strategy", "set_runtime_cache"),
    "IRuntimeCache": ("deserialize", "serialize"),
    "IExecutionContext": ("is_stream_capturable",),
}
