/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Where weights come from. The program reads them from dcmem; for an honest comparison the same
 * program also reads a Hugging Face directory, as a private copy or as a shared mapping.
 */
#ifndef LM_WEIGHTS_H
#define LM_WEIGHTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One tensor, seen as [n_rows, n_cols]. */
struct weight {
	uint64_t id; /* of the source */
	uint32_t dtype; /* enum dcmem_dtype */
	uint32_t n_dims;
	uint64_t n_rows, n_cols, row_bytes;
};

/* Rows in place; read-only. */
struct weight_view {
	const void *data;
	bool keep; /* costs nothing to hold: plain memory that is there anyway */
	uint64_t private_words[8]; /* of the source */
};

struct weights;

struct weights_source {
	const char *name;
	/* ENOENT (positive) if there is none of this name */
	int (*find)(struct weights *weights, const char *name, struct weight *ret_weight);
	int (*acquire)(struct weights *weights, const struct weight *weight, uint64_t row,
		       uint64_t n_rows, struct weight_view *ret_view);
	void (*release)(struct weights *weights, struct weight_view *view);
	/* NUL-terminated, from the C library's heap */
	int (*read_file)(struct weights *weights, const char *name, char **ret_text,
			 size_t *ret_n_bytes);
	void (*close)(struct weights *weights);
};

/* The head of every source's own struct. */
struct weights {
	const struct weights_source *source;
};

int weights_open_dcmem(const char *model, struct weights **ret_weights);
/* The *.safetensors of a directory: read into memory of this process, or mapped. */
int weights_open_copy(const char *directory, struct weights **ret_weights);
int weights_open_mmap(const char *directory, struct weights **ret_weights);

/* `source`: "dcmem", "copy" or "mmap". */
int weights_open(const char *source, const char *model, struct weights **ret_weights);
struct weights *weights_close(struct weights *weights);

#endif
