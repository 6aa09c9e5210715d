/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The report of `dcmem pack --quantize`. Bits are counted from the container that was written: all
 * stored bytes of a weight's codes and scales with their page records.
 */
#include "quant-table.h"

#include <stdio.h>
#include <string.h>

struct bits {
	uint64_t linear_bytes, linear_weights; /* what was quantized, without embeddings */
	uint64_t all_bytes, all_weights;
};

static const struct quant_tensor *find(const struct quant_report *report, const char *name,
				       bool *ret_scale)
{
	for (size_t i = 0; i < report->n_tensors; i++) {
		size_t n = strlen(report->tensors[i].name);

		if (strncmp(name, report->tensors[i].name, n) != 0)
			continue;
		*ret_scale = strcmp(name + n, "_scale") == 0;
		if (name[n] == '\0' || *ret_scale)
			return &report->tensors[i];
	}
	return NULL;
}

static void count(const struct quant_report *report, const struct container *container,
		  struct bits *ret_bits)
{
	const struct index *index = &container->index;
	struct bits bits = { 0 };

	for (uint64_t id = 0; id < index->n_tensors; id++) {
		const struct container_tensor *tensor;
		const struct quant_tensor *quant;
		const struct container_form *form;
		const char *name;
		uint64_t n_bytes, n_weights;
		bool scale = false;

		if (index_tensor(index, id, &tensor) || index_tensor_name(index, tensor, &name) ||
		    !tensor->n_forms || index_form(index, tensor->first_form, &form))
			continue;
		quant = find(report, name, &scale);
		n_bytes = 0;
		for (uint64_t i = 0; i < form->n_pages; i++) {
			const struct container_page *page;

			if (index_page(index, form->page_record + i, &page) == 0)
				n_bytes += page->stored_bytes + sizeof(*page);
		}
		n_weights = scale ? 0 : tensor->n_bytes / dtype_bytes(tensor->dtype);
		bits.all_bytes += tensor->flags & CONTAINER_TENSOR_SHARED ? 0 : n_bytes;
		bits.all_weights += n_weights;
		if (quant && !quant->embedding) {
			bits.linear_bytes += n_bytes;
			bits.linear_weights += n_weights;
		}
	}
	*ret_bits = bits;
}

static double per_weight(uint64_t n_bytes, uint64_t n_weights)
{
	return n_weights ? 8 * (double)n_bytes / (double)n_weights : 0;
}

static double tensor_bits(const struct quant_tensor *tensor)
{
	return per_weight(tensor->stored_bytes, tensor->n_rows * tensor->n_cols);
}

void quant_table_print(const struct quant_report *report, const struct container *container)
{
	double linear, all;
	struct bits bits;
	int width = 6;

	count(report, container, &bits);
	linear = per_weight(bits.linear_bytes, bits.linear_weights);
	all = per_weight(bits.all_bytes, bits.all_weights);
	for (size_t i = 0; i < report->n_tensors; i++)
		if ((int)strlen(report->tensors[i].name) > width)
			width = (int)strlen(report->tensors[i].name);
	printf("\n%-*s  %14s  %6s  %7s  %7s  %9s\n", width, "quantized", "shape", "bits", "to INT8",
	       "to BF16", "error");
	for (size_t i = 0; i < report->n_tensors; i++) {
		const struct quant_tensor *tensor = &report->tensors[i];
		char shape[48];

		snprintf(shape, sizeof(shape), "%llu x %llu", (unsigned long long)tensor->n_rows,
			 (unsigned long long)tensor->n_cols);
		printf("%-*s  %14s  %6.3f  %7.2f  %7.2f  %8.4f%%\n", width, tensor->name, shape,
		       tensor_bits(tensor), 8 / tensor_bits(tensor), 16 / tensor_bits(tensor),
		       100 * tensor->error);
	}
	printf("\nlinear layers  %.3f bits a weight, %.2f times smaller than INT8, %.2f than BF16\n", linear,
	       8 / linear, 16 / linear);
	printf("whole model    %.3f bits a weight\n", all);
	printf("calibration    %s, %u pass%s, %.1f s\n", report->calibration, report->n_passes,
	       report->n_passes == 1 ? "" : "es", report->seconds);
	if (report->n_windows)
		printf("text held back perplexity %.4f, was %.4f: x %.4f (standard error %.4f); KL %.5f;\n"
		       "               same next token %.2f %%; right %.2f %%, was %.2f %%; %zu windows\n",
		       report->perplexity, report->original_perplexity,
		       report->perplexity / report->original_perplexity, report->loss_error, report->kl,
		       100 * report->agreement, 100 * report->accuracy, 100 * report->original_accuracy,
		       report->n_windows);
	if (report->note[0])
		printf("note           %s\n", report->note);
}

static void tensor_json(const struct quant_tensor *tensor, struct json_out *out)
{
	json_out_object(out, NULL);
	json_out_string(out, "name", tensor->name);
	json_out_u64(out, "rows", tensor->n_rows);
	json_out_u64(out, "columns", tensor->n_cols);
	json_out_bool(out, "embedding", tensor->embedding);
	json_out_u64(out, "stored_bytes", tensor->stored_bytes);
	json_out_double(out, "bits_per_weight", tensor_bits(tensor));
	json_out_double(out, "relative_error", tensor->error);
	json_out_double(out, "near_zero_share", tensor->near_zero);
	json_out_end(out, '}');
}

void quant_table_json(const struct quant_report *report, const struct container *container,
		      struct json_out *out)
{
	struct bits bits;

	count(report, container, &bits);
	json_out_object(out, "quantization");
	json_out_string(out, "calibration", report->calibration);
	json_out_string(out, "note", report->note);
	json_out_double(out, "seconds", report->seconds);
	json_out_u64(out, "linear_weights", bits.linear_weights);
	json_out_u64(out, "linear_bytes", bits.linear_bytes);
	json_out_double(out, "bits_per_linear_weight",
			per_weight(bits.linear_bytes, bits.linear_weights));
	json_out_double(out, "bits_per_weight", per_weight(bits.all_bytes, bits.all_weights));
	json_out_array(out, "passes");
	for (unsigned i = 0; i < report->n_passes; i++) {
		json_out_object(out, NULL);
		json_out_double(out, "step", report->passes[i].step);
		json_out_double(out, "bits", report->passes[i].bits);
		json_out_double(out, "perplexity_ratio", report->passes[i].loss);
		json_out_end(out, '}');
	}
	json_out_end(out, ']');
	if (report->n_windows) {
		json_out_object(out, "held_back");
		json_out_u64(out, "windows", report->n_windows);
		json_out_double(out, "perplexity", report->perplexity);
		json_out_double(out, "original_perplexity", report->original_perplexity);
		json_out_double(out, "log_ratio_standard_error", report->loss_error);
		json_out_double(out, "kl", report->kl);
		json_out_double(out, "same_token_share", report->agreement);
		json_out_double(out, "accuracy", report->accuracy);
		json_out_double(out, "original_accuracy", report->original_accuracy);
		json_out_end(out, '}');
	}
	json_out_array(out, "tensors");
	for (size_t i = 0; i < report->n_tensors; i++)
		tensor_json(&report->tensors[i], out);
	json_out_end(out, ']');
	json_out_end(out, '}');
}
