/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dcmem cat: one tensor to stdout or a file, as bytes or as .npy. Reads a block of rows at a time
 * through the client API, so that a tensor larger than memory passes.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "talk.h"
#include "verb.h"

#define CAT_BLOCK_BYTES (4U << 20) /* untuned */

static const char cat_help[] =
	"Usage: dcmem cat FILE|MODEL TENSOR [--npy] [-o FILE] [--dtype D] [--socket PATH]\n\n"
	"Writes one tensor, decoded, to stdout: its bytes, row after row, or a .npy file.\n"
	"--dtype f32, f16 or bf16 converts, dequantizing a quantized tensor. numpy has no BF16\n"
	"or FP8: their bits come as uint16 or uint8 in .npy.\n\n"
	"  dcmem cat ./llama.dcmem model.norm.weight --npy --dtype f32 -o norm.npy\n\n"
	"Exit codes: 0 done, 1 failed, 2 wrong usage, 3 damaged data, 4 no daemon.\n";

struct cat {
	struct dcmem_options options;
	const char *model, *tensor, *out;
	uint32_t dtype;
	bool npy;
};

static int cat_dtype(const char *name, uint32_t *ret_dtype)
{
	static const struct {
		const char *name;
		uint32_t dtype;
	} dtypes[] = {{"f32", DCMEM_F32}, {"f16", DCMEM_F16}, {"bf16", DCMEM_BF16}};

	for (size_t i = 0; i < sizeof(dtypes) / sizeof(*dtypes); i++) {
		if (strcasecmp(name, dtypes[i].name) == 0) {
			*ret_dtype = dtypes[i].dtype;
			return 0;
		}
	}
	return -EINVAL;
}

static const char *cat_descr(uint32_t dtype)
{
	static const char *const descrs[] = {
		[DCMEM_BOOL] = "|b1", [DCMEM_U8] = "|u1",   [DCMEM_I8] = "|i1",	 [DCMEM_F8_E4M3] = "|u1",
		[DCMEM_F8_E5M2] = "|u1", [DCMEM_I16] = "<i2", [DCMEM_F16] = "<f2", [DCMEM_BF16] = "<u2",
		[DCMEM_I32] = "<i4",  [DCMEM_F32] = "<f4",  [DCMEM_I64] = "<i8", [DCMEM_U16] = "<u2",
		[DCMEM_U32] = "<u4",  [DCMEM_U64] = "<u8",  [DCMEM_F64] = "<f8",
	};

	return dtype < sizeof(descrs) / sizeof(*descrs) ? descrs[dtype] : NULL;
}

/* The header of a .npy file, version 1.0: padded so that data starts at a multiple of 64. */
static void cat_npy(FILE *file, const struct dcmem_tensor *tensor, uint32_t dtype)
{
	char text[512];
	int n = snprintf(text, sizeof(text), "{'descr': '%s', 'fortran_order': False, 'shape': (",
			 cat_descr(dtype));
	uint16_t length;

	for (uint32_t i = 0; i < tensor->n_dims; i++)
		n += snprintf(text + n, sizeof(text) - (size_t)n, "%" PRIu64 ",%s", tensor->dims[i],
			      i + 1 < tensor->n_dims ? " " : "");
	n += snprintf(text + n, sizeof(text) - (size_t)n, "), }");
	length = (uint16_t)((10 + n + 1 + 63) / 64 * 64 - 10);
	(void)fwrite("\x93NUMPY\x01\x00", 1, 8, file);
	fputc(length & 0xff, file);
	fputc(length >> 8, file);
	fprintf(file, "%s%*s\n", text, (int)length - n - 1, "");
}

static int cat_rows(struct dcmem *model, const struct dcmem_tensor *tensor, uint32_t dtype, FILE *file)
{
	size_t row_bytes = tensor->n_cols * dcmem_dtype_bytes(dtype ? dtype : tensor->dtype);
	uint64_t a_block = row_bytes ? CAT_BLOCK_BYTES / row_bytes : 0;
	uint8_t *block;
	int r = 0;

	if (row_bytes == 0 || tensor->n_rows == 0)
		return 0;
	if (a_block == 0)
		a_block = 1;
	if (a_block > tensor->n_rows)
		a_block = tensor->n_rows;
	block = malloc(a_block * row_bytes);
	if (!block)
		return -ENOMEM;
	for (uint64_t row = 0; row < tensor->n_rows && r == 0; row += a_block) {
		uint64_t n_rows = tensor->n_rows - row < a_block ? tensor->n_rows - row : a_block;
		struct dcmem_read request = {.size = sizeof(request),
					     .tensor = tensor->id,
					     .row = row,
					     .n_rows = n_rows,
					     .dtype = dtype,
					     .dst = block,
					     .dst_bytes = a_block * row_bytes};

		r = dcmem_read(model, &request);
		if (r == 0 && fwrite(block, row_bytes, n_rows, file) != n_rows)
			break; /* the caller sees it in the stream */
	}
	free(block);
	return r;
}

static int cat_run(const char *verb, const struct cat *cat)
{
	struct dcmem *model = NULL;
	struct dcmem_tensor tensor;
	FILE *file = stdout;
	int r;

	r = dcmem_open(cat->model, &cat->options, &model);
	if (r == 0)
		r = dcmem_find(model, cat->tensor, &tensor);
	if (r == 0 && cat->out)
		file = fopen(cat->out, "wbe");
	if (r == 0 && !file)
		r = -errno;
	if (r == 0 && cat->npy)
		cat_npy(file, &tensor, cat->dtype ? cat->dtype : tensor.dtype);
	if (r == 0)
		r = cat_rows(model, &tensor, cat->dtype, file);
	r = r ? talk_failure(verb, r) : 0;
	dcmem_close(model);
	if (!cat->out || !file)
		return r ? r : verb_flush(verb);
	if ((ferror(file) | fclose(file)) && r == 0)
		r = verb_failure(verb, -EIO, "the file could not be written whole");
	if (r != 0)
		(void)unlink(cat->out);
	return r;
}

int verb_cat(int argc, char **argv)
{
	static const struct option options[] = {
		{"socket", required_argument, NULL, 's'}, {"npy", no_argument, NULL, 'y'},
		{"output", required_argument, NULL, 'o'}, {"dtype", required_argument, NULL, 'd'},
		{"help", no_argument, NULL, 'h'},	  {0},
	};
	struct cat cat = {.options.size = sizeof(cat.options)};
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "ho:", options, NULL)) >= 0) {
		switch (c) {
		case 's':
			cat.options.socket_path = optarg;
			break;
		case 'y':
			cat.npy = true;
			break;
		case 'o':
			cat.out = optarg;
			break;
		case 'd':
			if (cat_dtype(optarg, &cat.dtype) < 0)
				return verb_usage(argv[0], "--dtype is f32, f16 or bf16");
			break;
		case 'h':
			printf("%s", cat_help);
			return verb_flush(argv[0]);
		default:
			return verb_usage(argv[0], "unknown option or missing value: %s",
					  argv[optind - 1]);
		}
	}
	if (argc - optind != 2)
		return verb_usage(argv[0], "a model and a tensor are needed");
	cat.model = argv[optind];
	cat.tensor = argv[optind + 1];
	return cat_run(argv[0], &cat);
}
