/* llama.cpp's side of `python -m bench.arm count`: the same work as guest.py, with the same marks.

   llama_count count MODEL PROMPT DECODE     one thread: PROMPT tokens at once, then DECODE tokens one at a time
   llama_count quantize MODEL OUT            Q4_0 with llama.cpp's own quantizer

   Every getpriority(2) makes the plugin print what ran since the one before. */
#include <llama.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static void quiet(enum ggml_log_level level, const char *text, void *data) {
    (void) data;
    if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr);
}

static void run(struct llama_context *context, llama_token *ids, int n) {
    if (llama_decode(context, llama_batch_get_one(ids, n)) != 0) {
        fprintf(stderr, "llama_decode failed\n");
        exit(1);
    }
}

static int quantize(const char *model, const char *out) {
    struct llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = LLAMA_FTYPE_MOSTLY_Q4_0;
    params.allow_requantize = true;
    return (int) llama_model_quantize(model, out, &params);
}

static int count(const char *path, int prompt, int decode) {
    struct llama_model *model = llama_model_load_from_file(path, llama_model_default_params());
    if (model == NULL) return 1;
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = 512;
    params.n_threads = params.n_threads_batch = 1;
    struct llama_context *context = llama_init_from_model(model, params);
    int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    llama_token *ids = malloc(sizeof *ids * (size_t) (prompt + decode));
    for (int i = 0; i < prompt + decode; i++) ids[i] = (1000 + 7 * i) % vocabulary;
    run(context, ids, prompt); /* whatever is done once */
    run(context, ids, 1);
    llama_memory_clear(llama_get_memory(context), true);
    getpriority(PRIO_PROCESS, 0);
    run(context, ids, prompt);
    getpriority(PRIO_PROCESS, 0);
    for (int i = 0; i < decode; i++) run(context, ids + prompt + i, 1);
    getpriority(PRIO_PROCESS, 0);
    const float *logits = llama_get_logits_ith(context, -1);
    int best = 0;
    for (int i = 1; i < vocabulary; i++) best = logits[i] > logits[best] ? i : best;
    printf("%d\n", best);
    return 0;
}

int main(int n, char **words) {
    llama_log_set(quiet, NULL);
    llama_backend_init();
    if (n == 4 && strcmp(words[1], "quantize") == 0) return quantize(words[2], words[3]);
    if (n == 5 && strcmp(words[1], "count") == 0) return count(words[2], atoi(words[3]), atoi(words[4]));
    fprintf(stderr, "llama_count count MODEL PROMPT DECODE | quantize MODEL OUT\n");
    return 2;
}
