"""The rule of every operator, one row for all operators that cost the same.

Names are PyTorch's without namespace (for aten), overload, `_foreach_` and the trailing underscore of in-place forms.
Passes follow what the engines do in one instruction (NKI instruction reference): the vector engine an arithmetic
operation on one or two tensors, with a reduction along the row for free; the scalar engine a function of one tensor
with scale, bias and a running sum for free. Where passes depend on more than the size, a function of passes.py counts.
"""

from neuronprof.graph import gemms, passes
from neuronprof.graph.cost import OpKind, Rule

_ELEMENTWISE, _REDUCTION, _COPY = OpKind.ELEMENTWISE, OpKind.REDUCTION, OpKind.COPY

ROWS: tuple[tuple[Rule, str], ...] = (
    # --- matrix products ---
    (Rule(OpKind.GEMM, gemms=gemms.matmul), "mm bmm matmul mv _int_mm _sparse_sparse_matmul"),
    (Rule(OpKind.GEMM, gemms=gemms.matmul, passes=passes.rescaled), "_scaled_mm _scaled_mm_v2 _weight_int8pack_mm"),
    (Rule(OpKind.GEMM, gemms=gemms.matmul_added, passes=passes.addend),
     "addmm addbmm baddbmm addmv _addmm_activation _sparse_addmm"),
    (Rule(OpKind.GEMM, gemms=gemms.linear, passes=passes.bias), "linear mkldnn_linear _mixed_dtypes_linear"),
    (Rule(OpKind.GEMM, gemms=gemms.linear_backward, passes=passes.bias_gradient), "linear_backward"),
    (Rule(OpKind.GEMM, gemms=gemms.foreach_mm), "_foreach_mm"),
    (Rule(OpKind.GEMM, gemms=gemms.grouped_matmul), "_grouped_mm"),
    (Rule(OpKind.GEMM, gemms=gemms.grouped_matmul, passes=passes.rescaled), "_scaled_grouped_mm _scaled_grouped_mm_v2"),
    (Rule(OpKind.GEMM, gemms=gemms.bilinear), "_trilinear"),
    (Rule(OpKind.GEMM, gemms=gemms.convolution, passes=passes.bias),
     "convolution _convolution convolution_overrideable conv1d conv2d conv3d conv_depthwise3d _conv_depthwise2d "
     "mkldnn_convolution cudnn_convolution cudnn_convolution_relu cudnn_convolution_add_relu miopen_convolution "
     "miopen_depthwise_convolution _slow_conv2d_forward slow_conv3d_forward slow_conv_dilated2d "
     "slow_conv_dilated3d _nnpack_spatial_convolution"),
    (Rule(OpKind.GEMM, gemms=gemms.transposed_convolution, passes=passes.bias),
     "conv_transpose1d conv_transpose2d conv_transpose3d cudnn_convolution_transpose miopen_convolution_transpose "
     "slow_conv_transpose2d slow_conv_transpose3d"),
    (Rule(OpKind.GEMM, gemms=gemms.convolution_backward, passes=passes.bias_gradient),
     "convolution_backward convolution_backward_overrideable"),
    (Rule(OpKind.ATTENTION, gemms=gemms.attention, passes=passes.attention),
     "scaled_dot_product_attention _scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
     "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention "
     "_scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math "
     "_scaled_dot_product_attention_math_for_mps"),
    (Rule(OpKind.ATTENTION, gemms=gemms.attention_backward, passes=passes.attention_backward),
     "_scaled_dot_product_flash_attention_backward _scaled_dot_product_flash_attention_for_cpu_backward "
     "_scaled_dot_product_efficient_attention_backward _scaled_dot_product_cudnn_attention_backward "
     "_scaled_dot_product_fused_attention_overrideable_backward"),
    (Rule(OpKind.ATTENTION, gemms=gemms.attention_rows, passes=passes.attention),
     "_flash_attention_forward _efficient_attention_forward _cudnn_attention_forward"),
    (Rule(OpKind.ATTENTION, gemms=gemms.attention_rows_backward, passes=passes.attention_backward),
     "_flash_attention_backward _efficient_attention_backward _cudnn_attention_backward"),
    (Rule(OpKind.ATTENTION, gemms=gemms.flex_attention, passes=passes.flex_attention), "higher_order.flex_attention"),
    (Rule(OpKind.ATTENTION, gemms=gemms.flex_attention_backward, passes=passes.flex_attention_backward),
     "higher_order.flex_attention_backward"),
    (Rule(OpKind.GEMM, gemms=gemms.recurrent, passes=passes.recurrent), "mkldnn_rnn_layer"),
    (Rule(OpKind.GEMM, gemms=gemms.recurrent_backward, passes=passes.recurrent_backward), "mkldnn_rnn_layer_backward"),
    (Rule(OpKind.GEMM, gemms=gemms.recurrent_layers, passes=passes.recurrent_layers), "lstm gru rnn_tanh rnn_relu"),
    (Rule(OpKind.ATTENTION, gemms=gemms.encoder_layer, passes=passes.encoder_layer),
     "_transformer_encoder_layer_fwd _native_multi_head_attention"),
    (Rule(_ELEMENTWISE, passes=passes.recurrent_cell),
     "_thnn_fused_lstm_cell _thnn_fused_gru_cell _thnn_fused_lstm_cell_backward_impl _thnn_fused_gru_cell_backward"),
    # --- point-wise: vector engine ---
    (Rule(_ELEMENTWISE, vector=1),
     "abs neg negative positive ceil floor round trunc fix frac sign sgn relu relu6 clamp clamp_min clamp_max clip "
     "hardtanh threshold leaky_relu bitwise_not isnan isinf isfinite isposinf isneginf isreal signbit nan_to_num "
     "deg2rad rad2deg conj_physical _conj_physical square _masked_scale hardshrink softshrink logical_not "
     "quantize_per_tensor quantize_per_channel dequantize int_repr _amp_foreach_non_finite_check_and_unscale "
     "_amp_update_scale _assert_async _functional_assert_async"),
    (Rule(_ELEMENTWISE, vector=2),
     "hardsigmoid fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask "
     "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fake_quantize_learnable_per_tensor_affine "
     "_fake_quantize_learnable_per_channel_affine _fused_moving_avg_obs_fq_helper"),
    (Rule(_ELEMENTWISE, vector=2, operands=2),
     "add sub subtract rsub mul multiply div divide true_divide floor_divide remainder fmod maximum minimum fmax "
     "fmin eq ne lt le gt ge not_equal greater greater_equal less less_equal logical_and logical_or logical_xor "
     "bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift __lshift__ __rshift__ __ilshift__ "
     "__irshift__ __and__ __or__ __xor__ __iand__ __ior__ __ixor__ copysign heaviside nextafter gcd lcm complex "
     "prelu _prelu_kernel masked_fill _add_relu native_dropout_backward hardtanh_backward threshold_backward "
     "leaky_relu_backward hardshrink_backward softshrink_backward hardsigmoid_backward rrelu_with_noise_backward "
     "isclose outer ger"),
    (Rule(_ELEMENTWISE, vector=3), "hardswish"),
    (Rule(_ELEMENTWISE, vector=3, operands=3), "where"),
    (Rule(_ELEMENTWISE, vector=4, operands=3), "addcmul addcdiv addr _compute_linear_combination"),
    (Rule(_ELEMENTWISE, vector=5, operands=3), "lerp"),
    (Rule(_ELEMENTWISE, vector=4),
     "hardswish_backward sigmoid_backward _prelu_kernel_backward logit_backward linalg_cross"),
    (Rule(_ELEMENTWISE, vector=3, scalar=2), "polar"),
    # --- point-wise: scalar engine ---
    (Rule(_ELEMENTWISE, scalar=1),
     "exp exp2 expm1 log log2 log10 log1p sqrt rsqrt reciprocal sin cos tan asin acos atan sinh cosh asinh acosh "
     "atanh arcsin arccos arctan arcsinh arccosh arctanh tanh sigmoid erf erfc erfinv gelu silu mish softplus "
     "log_sigmoid pow float_power special_erfcx special_ndtri special_log_ndtr sinc angle"),
    (Rule(_ELEMENTWISE, vector=1, scalar=1), "log_sigmoid_forward logit special_entr atan2 arctan2 hypot ldexp glu"),
    (Rule(_ELEMENTWISE, vector=2, scalar=1),
     "elu selu celu tanh_backward gelu_backward silu_backward softplus_backward mish_backward xlogy "
     "special_xlog1py soft_margin_loss_backward glu_jvp"),
    (Rule(_ELEMENTWISE, vector=3, scalar=1), "elu_backward log_sigmoid_backward glu_backward glu_backward_jvp"),
    (Rule(_ELEMENTWISE, vector=4, scalar=2), "logaddexp logaddexp2"),
    (Rule(_ELEMENTWISE, vector=8, scalar=4),  # series and rational approximations
     "digamma lgamma mvlgamma polygamma i0 igamma igammac special_i0e special_i1 special_i1e special_zeta "
     "special_airy_ai special_bessel_j0 special_bessel_j1 special_bessel_y0 special_bessel_y1 "
     "special_modified_bessel_i0 special_modified_bessel_i1 special_modified_bessel_k0 special_modified_bessel_k1 "
     "special_scaled_modified_bessel_k0 special_scaled_modified_bessel_k1 special_spherical_bessel_j0 "
     "special_chebyshev_polynomial_t special_chebyshev_polynomial_u special_chebyshev_polynomial_v "
     "special_chebyshev_polynomial_w special_hermite_polynomial_h special_hermite_polynomial_he "
     "special_laguerre_polynomial_l special_legendre_polynomial_p frexp _standard_gamma_grad _dirichlet_grad"),
    # --- point-wise: masks by position run on gpsimd (affine_select) ---
    (Rule(_ELEMENTWISE, gpsimd=1), "tril triu"),
    # --- optimizers, one pass over every parameter: moments, bias correction, update ---
    (Rule(_ELEMENTWISE, vector=10, scalar=2), "_fused_adam _fused_adamw"),
    (Rule(_ELEMENTWISE, vector=5), "_fused_sgd"),
    (Rule(_ELEMENTWISE, vector=7, scalar=2), "_fused_adagrad"),
    # --- reductions ---
    (Rule(_REDUCTION, passes=passes.total), "sum mean nansum"),
    (Rule(_REDUCTION, vector=1),
     "prod amax amin max min aminmax _aminmax argmax argmin any all count_nonzero var std var_mean "
     "std_mean trace segment_reduce _segment_reduce_backward batch_norm_stats hash_tensor"),
    (Rule(_REDUCTION, scalar=1), "norm linalg_vector_norm linalg__powsum powsum native_norm "),
    (Rule(_REDUCTION, vector=2), "dot vdot"),
    (Rule(_REDUCTION, vector=2, scalar=1), "dist renorm _weight_norm_interface _pdist_forward"),
    (Rule(_REDUCTION, vector=1, scalar=1), "logsumexp"),
    (Rule(_REDUCTION, vector=6, scalar=1), "_weight_norm_interface_backward _pdist_backward"),
    (Rule(_REDUCTION, passes=passes.distances), "_cdist_forward _cdist_backward _euclidean_dist"),
    # --- losses ---
    (Rule(_REDUCTION, vector=2, scalar=1), "mse_loss soft_margin_loss"),
    (Rule(_ELEMENTWISE, vector=3), "mse_loss_backward"),
    (Rule(_REDUCTION, vector=5), "smooth_l1_loss huber_loss"),
    (Rule(_ELEMENTWISE, vector=5), "smooth_l1_loss_backward huber_loss_backward"),
    (Rule(_REDUCTION, vector=5, scalar=2), "binary_cross_entropy binary_cross_entropy_with_logits kl_div"),
    (Rule(_ELEMENTWISE, vector=6), "binary_cross_entropy_backward"),
    (Rule(_REDUCTION, vector=4, gpsimd=1),
     "multi_margin_loss multi_margin_loss_backward multilabel_margin_loss_forward multilabel_margin_loss_backward"),
    (Rule(_REDUCTION, vector=6, scalar=3, gpsimd=1), "_ctc_loss _cudnn_ctc_loss miopen_ctc_loss _ctc_loss_backward"),
    # --- softmax: maximum; exponential with its sum; scaling ---
    (Rule(_REDUCTION, vector=2, scalar=1), "_softmax softmax _safe_softmax _log_softmax log_softmax"),
    (Rule(_REDUCTION, vector=4, scalar=1), "_masked_softmax"),
    (Rule(_REDUCTION, vector=4), "_softmax_backward_data _masked_softmax_backward"),
    (Rule(_REDUCTION, vector=3, scalar=1), "_log_softmax_backward_data"),
    # --- norms: statistics; normalization; scale and shift by tensors along the row ---
    (Rule(_REDUCTION, passes=passes.layer_norm), "native_layer_norm layer_norm"),
    (Rule(_REDUCTION, vector=12), "native_layer_norm_backward"),
    (Rule(_REDUCTION, vector=3, scalar=1), "_fused_rms_norm rms_norm"),
    (Rule(_REDUCTION, vector=9, scalar=1), "_fused_rms_norm_backward"),
    (Rule(_REDUCTION, vector=3), "native_group_norm group_norm"),  # scale and shift of a channel stand in registers
    (Rule(_REDUCTION, vector=8), "native_group_norm_backward"),
    (Rule(_REDUCTION, vector=2),
     "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_functional "
     "_native_batch_norm_legit_no_training _batch_norm_with_update _batch_norm_with_update_functional "
     "_batch_norm_no_update _batch_norm_impl_index batch_norm cudnn_batch_norm miopen_batch_norm instance_norm "
     "batch_norm_elemt batch_norm_gather_stats batch_norm_gather_stats_with_counts batch_norm_update_stats"),
    (Rule(_REDUCTION, vector=7),
     "native_batch_norm_backward batch_norm_backward cudnn_batch_norm_backward miopen_batch_norm_backward "
     "_batch_norm_impl_index_backward batch_norm_backward_reduce batch_norm_backward_elemt"),
    # --- resampling: weights times neighbours ---
    (Rule(_COPY, vector=1),
     "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d "
     "_upsample_nearest_exact3d"),
    (Rule(_REDUCTION, vector=2),
     "upsample_nearest1d_backward upsample_nearest2d_backward upsample_nearest3d_backward "
     "_upsample_nearest_exact1d_backward _upsample_nearest_exact2d_backward _upsample_nearest_exact3d_backward "
     "upsample_linear1d upsample_linear1d_backward"),
    (Rule(_REDUCTION, vector=8),
     "upsample_bilinear2d upsample_bilinear2d_backward _upsample_bilinear2d_aa _upsample_bilinear2d_aa_backward"),
    (Rule(_REDUCTION, vector=16), "upsample_trilinear3d upsample_trilinear3d_backward"),
    (Rule(_REDUCTION, vector=32),
     "upsample_bicubic2d upsample_bicubic2d_backward _upsample_bicubic2d_aa _upsample_bicubic2d_aa_backward "
     "_upsample_lanczos2d_aa _upsample_lanczos2d_aa_backward"),
    (Rule(OpKind.GATHER, vector=8, gpsimd=4), "grid_sampler_2d cudnn_grid_sampler _grid_sampler_2d_cpu_fallback"),
    (Rule(OpKind.GATHER, vector=16, gpsimd=8), "grid_sampler_3d"),
    (Rule(OpKind.SCATTER, vector=16, gpsimd=8),
     "grid_sampler_2d_backward cudnn_grid_sampler_backward _grid_sampler_2d_cpu_fallback_backward "
     "grid_sampler_3d_backward"),
    (Rule(_ELEMENTWISE, vector=4),
     "affine_grid_generator cudnn_affine_grid_generator cudnn_affine_grid_generator_backward"),
    # --- gather and scatter: gpsimd handles indices, DMA moves rows ---
    (Rule(OpKind.GATHER, passes=passes.gather, picks=True),
     "embedding index _unsafe_index _unsafe_masked_index index_select gather take take_along_dim nll_loss_forward "
     "nll_loss2d_forward repeat_interleave"),
    (Rule(OpKind.GATHER, passes=passes.gather_sum, picks=True),
     "_embedding_bag _embedding_bag_forward_only embedding_bag"),
    (Rule(OpKind.GATHER, gpsimd=1),
     "masked_select nonzero nonzero_static masked_scatter_backward _embedding_bag_per_sample_weights_backward "
     "max_unpool2d max_unpool3d sparse_mask _to_dense _values_copy values_copy indices_copy _indices_copy "
     "_pack_padded_sequence _pad_packed_sequence to_padded_tensor _jagged_to_padded_dense_forward "
     "_padded_dense_to_jagged_forward torchvision.roi_align torchvision.roi_pool torchvision.ps_roi_align"),
    (Rule(OpKind.SCATTER, passes=passes.scatter),
     "scatter scatter_add scatter_reduce index_put _index_put_impl _unsafe_index_put "
     "_unsafe_masked_index_put_accumulate index_add index_copy index_fill index_reduce put"),
    (Rule(OpKind.SCATTER, passes=passes.embedding_gradient),
     "embedding_dense_backward embedding_backward embedding_sparse_backward _embedding_bag_backward "
     "_embedding_bag_dense_backward gather_backward index_select_backward"),
    (Rule(OpKind.SCATTER, passes=passes.loss_gradient), "nll_loss_backward nll_loss2d_backward"),
    (Rule(OpKind.SCATTER, gpsimd=1),
     "masked_scatter embedding_renorm max_pool2d_with_indices_backward max_pool3d_with_indices_backward "
     "adaptive_max_pool2d_backward adaptive_max_pool3d_backward fractional_max_pool2d_backward "
     "fractional_max_pool3d_backward max_pool2d_backward torchvision._roi_align_backward "
     "torchvision._roi_pool_backward histc bincount histogram _histogramdd_from_bin_cts "
     "_histogramdd_from_bin_tensors"),
    # --- pooling: the passes are the windows, or over the input where these do not overlap ---
    (Rule(_REDUCTION, passes=passes.pooling),
     "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool2d_with_indices "
     "max_pool3d_with_indices mkldnn_max_pool2d mkldnn_max_pool3d fractional_max_pool2d fractional_max_pool3d"),
    (Rule(_REDUCTION, vector=1),
     "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
     "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d mkldnn_adaptive_avg_pool2d avg_pool2d_backward "
     "avg_pool3d_backward _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward adaptive_avg_pool3d_backward "
     "mkldnn_adaptive_avg_pool2d_backward"),
    # --- movement ---
    (Rule(_COPY, vector=1),
     "copy clone _to_copy to type_as contiguous cat concat concatenate stack _stack hstack vstack _chunk_cat "
     "constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
     "replication_pad3d flip fliplr flipud roll rot90 repeat tile pixel_shuffle pixel_unshuffle channel_shuffle "
     "im2col col2im block_diag diag_embed unfold_backward select_backward slice_backward diagonal_backward "
     "slice_scatter select_scatter diagonal_scatter as_strided_scatter view_copy expand_copy permute_copy "
     "transpose_copy t_copy slice_copy select_copy narrow_copy squeeze_copy unsqueeze_copy split_copy "
     "split_with_sizes_copy unbind_copy unfold_copy as_strided_copy alias_copy detach_copy diagonal_copy "
     "view_as_complex_copy view_as_real_copy _reshape_copy _reshape_alias_copy _conj_copy _neg_view_copy "
     "_lazy_clone unsafe_split unsafe_split_with_sizes unsafe_chunk cartesian_prod meshgrid _copy_from "
     "_transform_bias_rescale_qkv _mkldnn_transpose to_mkldnn mkldnn_reorder_conv2d_weight "
     "mkldnn_reorder_conv3d_weight _cudnn_rnn_flatten_weight from_file lift_fresh_copy"),
    (Rule(_COPY, vector=2),
     "reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward replication_pad1d_backward "
     "replication_pad2d_backward replication_pad3d_backward"),
    # --- fills ---
    (Rule(OpKind.FILL, vector=1),
     "arange range linspace logspace full full_like fill zeros zeros_like zero ones ones_like new_full new_zeros "
     "new_ones eye scalar_tensor tril_indices triu_indices bartlett_window blackman_window hamming_window "
     "hann_window kaiser_window fft_fftfreq fft_rfftfreq _new_zeros_with_same_feature_meta"),
    (Rule(OpKind.FILL),
     "empty empty_like empty_strided empty_permuted new_empty new_empty_strided resize resize_as _resize_output "
     "_efficientzerotensor _empty_affine_quantized _cudnn_init_dropout_state"),
    # --- random numbers: gpsimd makes them uniform, the scalar engine bends them ---
    (Rule(OpKind.RANDOM, gpsimd=1),
     "rand rand_like uniform randint randint_like random _philox_uniform _fill_mem_eff_dropout_mask"),
    (Rule(OpKind.RANDOM, vector=1, gpsimd=1), "bernoulli rrelu_with_noise rrelu_with_noise_functional"),
    (Rule(OpKind.RANDOM, scalar=2, gpsimd=1), "randn randn_like normal normal_functional _philox_normal log_normal"),
    (Rule(OpKind.RANDOM, scalar=1, gpsimd=1), "exponential geometric cauchy"),
    (Rule(OpKind.RANDOM, vector=1, scalar=2, gpsimd=4), "poisson binomial _standard_gamma _sample_dirichlet"),
    (Rule(OpKind.RANDOM, vector=3, gpsimd=1), "native_dropout _fused_dropout dropout alpha_dropout feature_dropout"),
    (Rule(OpKind.RANDOM, vector=2, gpsimd=2), "multinomial"),
    # --- order: comparisons ---
    (Rule(_REDUCTION, gpsimd=1),
     "cumsum cumprod cummax cummin _cummax_helper _cummin_helper bucketize searchsorted isin"),
    (Rule(_REDUCTION, scalar=2, gpsimd=1), "logcumsumexp _logcumsumexp"),
    (Rule(OpKind.SORT, passes=passes.comparison_sort),
     "sort argsort msort kthvalue median nanmedian mode unique_dim unique_dim_consecutive"),
    (Rule(OpKind.SORT, passes=passes.whole_sort),
     "_coalesce _unique _unique2 unique_consecutive randperm torchvision.nms"),
    (Rule(OpKind.SORT, passes=passes.top_k), "topk"),
    # --- decompositions and solvers ---
    (Rule(OpKind.SORT, passes=passes.decomposition),
     "cholesky linalg_cholesky_ex cholesky_inverse cholesky_solve _cholesky_solve_helper linalg_inv_ex linalg_qr "
     "geqrf ormqr linalg_householder_product linalg_lu linalg_lu_factor_ex linalg_lu_solve lu_unpack "
     "_linalg_solve_ex linalg_solve_triangular triangular_solve _linalg_det _linalg_slogdet _linalg_svd "
     "_linalg_eigh linalg_eig _linalg_eigvals linalg_ldl_factor_ex linalg_ldl_solve linalg_lstsq linalg_matrix_exp "
     "linalg_pinv"),
    (Rule(_REDUCTION, passes=passes.fourier), "_fft_c2c _fft_r2c _fft_c2r"),
    # --- the host waits for a value ---
    (Rule(OpKind.HOST_SYNC), "_local_scalar_dense item is_nonzero _is_all_true _is_any_true"),
    (Rule(OpKind.HOST_SYNC, vector=2), "equal allclose"),
    # --- nothing computed ---
    (Rule(OpKind.VIEW),
     "view _unsafe_view reshape _reshape_alias as_strided t transpose permute movedim swapaxes expand expand_as "
     "squeeze unsqueeze select slice narrow split split_with_sizes chunk tensor_split unbind unfold diagonal diag "
     "alias detach lift lift_fresh view_as view_as_complex view_as_real real imag _conj conj _neg_view "
     "resolve_conj resolve_neg values indices _values _indices crow_indices col_indices set flatten ravel "
     "unflatten adjoint _fused_sdp_choice record_stream is_pinned pin_memory _pin_memory is_same_size is_set_to "
     "_has_same_storage_numel sym_size sym_numel sym_stride sym_storage_offset sym_constrain_range "
     "sym_constrain_range_for_size _assert_scalar _functional_assert_scalar _assert_tensor_metadata "
     "_linalg_check_errors _print _nnz is_coalesced _coalesced dense_dim sparse_dim _dimI _dimV "
     "_use_cudnn_ctc_loss _make_dual _fw_primal _version _mkldnn_reshape _make_dep_token slice_inverse "
     "_sparse_coo_tensor_with_dims_and_tensors _sparse_coo_tensor_with_dims sparse_resize "
     "profiler._record_function_enter profiler._record_function_enter_new profiler._record_function_exit "
     "_c10d_functional.wait_tensor _c10d_functional_autograd.wait_tensor _c10d_functional._wrap_tensor_autograd"),
    (Rule(OpKind.COLLECTIVE), "neuronprof.permute_"),
    (Rule(OpKind.TRANSFER), "neuronprof.h2d neuronprof.d2h"),
)  # fmt: skip

RULES: dict[str, Rule] = {name: rule for rule, names in ROWS for name in names.split()}
