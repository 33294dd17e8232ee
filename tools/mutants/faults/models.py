"""Faults in models, tokens and sampling."""

from tools.mutants.fault import Fault, Module, tests_of

CREDIT = "tests/rlhf_core/algorithms/test_credit.py"
RATIOS = "tests/rlhf_core/loops/test_ratios.py"
TOKENS = "tests/rlhf_core/models/test_tokens.py"
PACKING = "tests/rlhf_core/models/test_packing.py"
FORWARD = "tests/rlhf_core/models/test_forward.py"
SAMPLING = "tests/rlhf_core/models/test_sampling.py"
DECODING = "tests/rlhf_core/models/test_decoding.py"
INVERSE = "tests/rlhf_core/models/test_inverse_cdf.py"
PORTABLE = "tests/rlhf_core/models/test_portable.py"
RUNS = "tests/rlhf_core/loops/test_runs.py"
STORE = "tests/rlhf_core/models/test_store.py"
ADAPTERS = "tests/rlhf_core/models/test_adapters.py"
ENSEMBLES = "tests/rlhf_core/models/test_ensembles.py"
TEMPERED_KL = tests_of(
    "tests/tasks/stages/test_evaluate.py",
    "kl_of_tempered_distributions_by_hand",
    "kl_along_responses_is_that_of_whole_responses_at_the_same_temperature",
)

MODULES = [
    Module(
        "rlhf_core/models/head.py",
        PACKING,
        Fault(
            "kl_of_states",
            "exact_kl(head(states), ref_head(ref_states), temperature)",
            "exact_kl(head(states) / temperature, ref_head(ref_states))",
            "the reference ignores the temperature",
            TEMPERED_KL,
            33,
        ),
        Fault(
            "_Logprobs.forward",
            "_logits(part, cast, temperature)",
            "_logits(part, cast, 1.0)",
            "temperature ignored by the chunked head",
            PACKING,
            11,
        ),
        Fault(
            "_slopes_",
            "probabilities.mul_(-of_logprobs",
            "probabilities.mul_(of_logprobs",
            "gradient with the wrong sign",
        ),
    ),
    Module(
        "rlhf_core/models/packing.py",
        PACKING,
        Fault("_Packing._tree", "response[in_response]", "response[in_response] + 1", "positions skip one"),
        Fault("Tree.__init__", ".tril()", "", "tokens see later ones"),
        Fault("_Packing._rows", "ends - self.sizes - 1", "ends - self.sizes", "values read one token late"),
    ),
    Module(
        "rlhf_core/models/forward.py",
        FORWARD,
        Fault(
            "position_ids",
            "attention_mask.cumsum(-1) - 1",
            "attention_mask.cumsum(-1)",
            "positions off by one",
            FORWARD,
            1,
        ),
        Fault("response_logits", "logits[:, -keep:-1]", "logits[:, -keep + 1 :]", "logits of the next token", FORWARD),
        Fault(
            "policy_outputs",
            "logits.detach(), temperature)",
            "logits.detach())",
            "entropy at another temperature",
            PACKING,
            11,
        ),
        Fault(
            "policy_outputs",
            "exact_kl(logits, ref_logits, temperature)",
            "exact_kl(logits, ref_logits)",
            "KL at another temperature",
            FORWARD,
            11,
        ),
        Fault(
            "policy_outputs",
            "exact_kl(logits, ref_logits, temperature)",
            "exact_kl(logits.detach(), ref_logits, temperature)",
            "KL penalty without a gradient",
            FORWARD,
        ),
        Fault(
            "values",
            "[:, -batch.response_length - 1 : -1]",
            "[:, -batch.response_length :]",
            "the value after its token",
            FORWARD,
            7,
        ),
        Fault(
            "scores",
            "(columns * batch.attention_mask).argmax(-1, keepdim=True)",
            "(columns * (batch.input_ids != batch.input_ids[:, -1:])).argmax(-1, keepdim=True)",
            "the score one token before the end",
            FORWARD,
            7,
        ),
    ),
    Module(
        "rlhf_core/models/sampling.py",
        SAMPLING,
        Fault(
            "LocalSampler._distribution",
            "Distribution(self.temperature,",
            "Distribution(1.0,",
            "sampling at another temperature",
            f"{SAMPLING} {RATIOS}",
            9,
        ),
        Fault(
            "LocalSampler._generate",
            "policy.generation_config, GenerationConfig()",
            "policy.generation_config, policy.generation_config",
            "the model's own penalties change the samples",
            SAMPLING,
            29,
        ),
        Fault(
            "LocalSampler.truncates",
            "self._distribution.truncates or bool(self.stop_strings)",
            "self._distribution.truncates",
            "training accepts stop strings",
            DECODING,
            29,
        ),
        Fault("LocalSampler._in_parts", "seeds[part]", "seeds[: self.rows]", "each part has the same seeds", DECODING),
    ),
    Module(
        "rlhf_core/models/drawing.py",
        DECODING,
        Fault(
            "Draws._result",
            "token in self.ends.stop_tokens)",
            "token == self.ends.stop_tokens[0])",
            "only one of several stop tokens is used",
            SAMPLING,
            8,
        ),
        Fault("Draws._result", "Drawn(tokens[:end]", "Drawn(tokens[: end - 1]", "the end token cut off", SAMPLING, 3),
        Fault(
            "Draws._result",
            "or length <= len(tokens)",
            "or end <= len(tokens)",
            "a response that was cut off counts as ended",
            SAMPLING,
            3,
        ),
        Fault(
            "Draws.draw",
            "self.uniforms[self.step].index_select(0, rows)",
            "self.uniforms[self.step, : len(rows)]",
            "numbers belong to places in the batch instead of rows",
            DECODING,
        ),
        Fault(
            "Distribution.draw",
            "tempered.log_softmax(-1).gather",
            "changed.log_softmax(-1).gather",
            "log-probabilities of the truncated distribution",
            DECODING,
            29,
        ),
        Fault(
            "Distribution.draw",
            "logits / self.temperature",
            "logits * self.temperature",
            "temperature multiplies the logits",
            SAMPLING,
            9,
        ),
    ),
    Module(
        "rlhf_core/models/inverse_cdf.py",
        INVERSE,
        Fault(
            "inverse_cdf",
            "searchsorted(inner, target, right=True)",
            "searchsorted(inner, target)",
            "a token of weight 0",
            INVERSE,
        ),
        Fault(
            "inverse_cdf",
            "target - ends.gather(1, block)",
            "target",
            "the place in the block from the whole sum",
            INVERSE,
        ),
        Fault(
            "inverse_cdf",
            "if whole < size:\n        blocks",
            "if False:\n        blocks",
            "the last tokens are never drawn",
            INVERSE,
        ),
        Fault(
            "uniforms",
            "np.random.Philox(key=seed)",
            "np.random.Philox(key=seeds[0])",
            "all rows draw the same numbers",
            INVERSE,
        ),
    ),
    Module(
        "rlhf_core/models/cache.py",
        DECODING,
        Fault(
            "RowLayout.__init__",
            ">= lengths[:, None]",
            "> lengths[:, None]",
            "a pad of the prompt is read",
            DECODING,
            1,
        ),
        Fault(
            "RowLayout.keep",
            ".index_select(1, rows)",
            "[:, : len(rows)]",
            "rows read the tokens of removed rows",
            DECODING,
        ),
        Fault(
            "RowLayout.keep",
            "[:, :, : self.step] = old[:, :, : self.step]",
            "[:, :, 1 : self.step] = old[:, :, 1 : self.step]",
            "the first token is forgotten",
            DECODING,
        ),
        Fault(
            "RowLayout._arrange",
            "(ends - torch.tensor(counts))[:, None] + place",
            "place",
            "rows read the prompt of another row",
            DECODING,
        ),
    ),
    Module(
        "rlhf_core/models/decoding.py",
        DECODING,
        Fault(
            "decode", "positions + step", "positions + step - 1", "positions of the response off by one", DECODING, 1
        ),
        Fault("_read_prompts", "lengths - 1]", "-1]", "the first token follows a pad", DECODING, 1),
    ),
    Module(
        "rlhf_core/models/tokens.py",
        TOKENS,
        Fault(
            "ready_tokenizer",
            " or tokenizer.pad_token_id == tokenizer.eos_token_id",
            "",
            "pad is the end token",
            TOKENS,
            3,
        ),
        Fault(
            "encode_prompt",
            "for_response=True",
            "for_response=False",
            "no turn for the assistant",
            f"{TOKENS} tests/rlhf_core/models/test_control_tokens.py",
        ),
        Fault(
            "_render",
            "while start < len(ids) and ids[start] == bos:",
            "while False:",
            "two beginning tokens",
            TOKENS,
            4,
        ),
        Fault("encode_response", "[*ids, tokenizer.eos_token_id]", "[*ids]", "no end token trained", TOKENS, 3),
        Fault(
            "encode_response",
            "if control.search(text):",
            "if False:",
            "text becomes control tokens",
            "tests/rlhf_core/models/test_control_tokens.py",
        ),
    ),
    Module(
        "rlhf_core/models/store.py",
        RUNS,
        Fault("without_dropout", "setattr(config, name, 0.0)", "pass", "dropout in a forward pass", FORWARD, 10),
        Fault("ScalarModel.scalars", " / self.scale", "", "the scale of a reward model lost", PORTABLE, 26),
        Fault(
            "ScalarModel.scalars",
            "(scalars - self.offset)",
            "scalars",
            "the centring of a reward model lost",
            f"{PORTABLE} {CREDIT}",
            21,
        ),
        Fault(
            "load_policy",
            "load_config(path), dtype, attention)",
            "load_config(path), dtype, attention).bfloat16()",
            "weights in bf16",
            RUNS,
            24,
        ),
        Fault(
            "_load",
            'missing = set(found["missing_keys"])',
            "missing = set()",
            "missing tensors are random",
            "tests/rlhf_core/models/test_checkpoint.py",
        ),
        Fault(
            "_load",
            "bool(torch.isfinite(weight).all())",
            "True",
            "NaN weights loaded",
            "tests/rlhf_core/models/test_checkpoint.py",
        ),
        Fault(
            "save_policy",
            "        temperature=temperature,\n",
            "",
            "the training temperature is not saved",
            STORE,
        ),
        Fault(
            "stop_tokens",
            "[tokenizer.eos_token_id, *listed]",
            "[tokenizer.eos_token_id]",
            "the model's other stop tokens ignored",
            SAMPLING,
            8,
        ),
        Fault(
            "fit_vocabulary",
            "weight[:known].mean(0)",
            "torch.zeros_like(weight[0])",
            "the new pad token's row is 0",
            TOKENS,
            3,
        ),
    ),
    Module(
        "rlhf_core/models/ensembles.py",
        ENSEMBLES,
        Fault("aggregate", "scores.amin(0)", "scores.amax(0)", "best case instead of the worst"),
        Fault("aggregate", "correction=0", "correction=1", "sample std instead of 1/M"),
        Fault(
            "ScalarEnsemble.set_normalisation",
            "member.offset + offset",
            "offset",
            "members are not centred separately",
        ),
        Fault(
            "load_reward_model",
            "config.reward_aggregate, config.reward_std_coef",
            '"mean", 1.0',
            "an ensemble loaded with another aggregate",
        ),
    ),
    Module(
        "rlhf_core/models/checkpoint.py",
        "tests/rlhf_core/models/test_checkpoint.py",
        Fault("_header", "if begin != end:", "if False:", "bytes that belong to no tensor"),
        Fault("_refuse_code", 'if "auto_map" in config:', "if False:", "the model's own code is accepted"),
        Fault(
            "_check_tokenizer", "if beyond and beyond != {pad: rows}:", "if False:", "the tokenizer of another model"
        ),
        Fault("_embedding_rows", "width not in (None, shape[1])", "False", "the config of another model"),
    ),
    Module(
        "rlhf_core/models/adapters.py",
        ADAPTERS,
        Fault("_inject", "parameter.requires_grad_(True)", "pass", "nothing is trained, not even the score head"),
        Fault("load_adapter", "own.weights_sha256 != base.weights_sha256", "False", "an adapter of another base"),
    ),
    Module(
        "rlhf_core/models/merging.py",
        ADAPTERS,
        Fault("merge_layers", "plain.weight.data += adapted.get_delta_weight(NAME)", "pass", "merged equals its base"),
        Fault("_check", "if not gap <= rounding + LOST * change:", "if False:", "a wrong merge is saved"),
        Fault("_float", "torch.float32 if value.is_floating_point() else value.dtype", "value.dtype", "merged in bf16"),
    ),
    Module(
        "rlhf_core/models/sharing.py",
        ADAPTERS,
        Fault("shared_copy", "[*frozen, *model.buffers()]", "model.buffers()", "a copy of the base for each model"),
        Fault("shared_copy", "if not parameter.requires_grad", "if True", "two models train the same weights"),
    ),
    Module(
        "rlhf_core/models/checkpointing.py",
        ADAPTERS,
        Fault(
            "checkpoint_layers",
            '    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})\n',
            "",
            "no layer is checkpointed",
        ),
    ),
    Module(
        "rlhf_core/loops/common/resume.py",
        ADAPTERS,
        Fault("trained_state", "if name not in frozen", "", "frozen weights in every resume state"),
        Fault(
            "load_trained_state",
            "if unexpected or set(missing) - _frozen(model):",
            "if False:",
            "half a state is loaded",
        ),
    ),
    Module(
        "tasks/runtime/out_of_memory.py",
        "tests/tasks/runtime/test_memory.py",
        Fault("advice", "limit = min(memory, now)", "limit = memory", "advice that needs more memory than now"),
        Fault("_with_micro_batch", "micro_batch_size=size", "micro_batch_size=1", "advice for another micro-batch"),
    ),
]
