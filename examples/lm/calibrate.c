/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Statistics of what linear layers multiply, for the packer: max |x|, the mean of x^2 and, on
 * request, of x x^T over the tokens of windows that are spread evenly over a file of ids. An input
 * that several layers share is added up once and written under each of their names. Products of a
 * batch are summed in float32, batches in float64. Refuses inputs that are not finite. The file
 * appears under its name once it is whole.
 *
 *   covariance of a batch, upper triangle, in threads:
 *     x [tokens][columns] --> x^T [columns][tokens]        6 rows of it at a time
 *                         --> tiles [columns / tile][tokens][tile], from the row's own on
 */
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"
#include "transformer.h"

struct input {
	size_t n_cols;
	float *most;
	double *squares;    /* sums */
	double *covariance; /* sums, [n_cols][n_cols], j >= i; or NULL */
	uint64_t n_tokens;
};

struct layer_name {
	char *name; /* NULL: none */
	size_t input;
};

struct calibration {
	struct observer observer; /* the first member: observe() is given its address */
	const struct kernel *kernel;
	struct threads *threads;
	bool covariance, seen; /* seen: every layer has its name */
	struct input *inputs;
	struct layer_name *names;
	size_t n_inputs, n_names, n_most; /* n_most: room for names and inputs */
	size_t next;		  /* input, of this batch */
	float *columns, *tiles;		  /* of this batch */
	size_t n_columns;		  /* for which there is room */
	struct input *current;
};

static void calibration_deinit(struct calibration *calibration)
{
	for (size_t i = 0; calibration->inputs && i < calibration->n_inputs; i++) {
		array_free(calibration->inputs[i].most);
		array_free(calibration->inputs[i].squares);
		array_free(calibration->inputs[i].covariance);
	}
	for (size_t i = 0; calibration->names && i < calibration->n_names; i++)
		free(calibration->names[i].name);
	array_free(calibration->inputs);
	array_free(calibration->names);
	array_free(calibration->columns);
	array_free(calibration->tiles);
}

static int calibration_init(struct calibration *calibration, const struct session *session,
			    bool covariance)
{
	memset(calibration, 0, sizeof(*calibration));
	calibration->kernel = session->engine.kernel;
	calibration->threads = session->engine.threads;
	calibration->covariance = covariance;
	calibration->n_most = (size_t)session->config.n_layers * 7 + 1;
	calibration->inputs = array_new(calibration->n_most, sizeof(*calibration->inputs));
	calibration->names = array_new(calibration->n_most, sizeof(*calibration->names));
	if (!calibration->inputs || !calibration->names)
		return error_set(-ENOMEM, "no memory for statistics");
	return 0;
}

/* The model's name without ".weight"; the output matrix is lm_head, also where it is tied. */
static char *layer_name_new(const char *tensor)
{
	size_t n = strlen(tensor) - strlen(".weight");
	const char *tied = "embed_tokens";

	if (n >= strlen(tied) && memcmp(tensor + n - strlen(tied), tied, strlen(tied)) == 0)
		return strdup("lm_head");
	return strndup(tensor, n);
}

static int input_add(struct calibration *calibration, const struct matrix *matrix)
{
	struct input *input = &calibration->inputs[calibration->n_inputs];
	size_t n = matrix->weight.n_cols, square;

	if (__builtin_mul_overflow(n, n, &square))
		return error_set(-ENOMEM, "no memory for statistics of %s", matrix->name);
	calibration->n_inputs++;
	input->n_cols = n;
	input->most = array_new(n, sizeof(float));
	input->squares = array_new(n, sizeof(double));
	if (calibration->covariance)
		input->covariance = array_new(square, sizeof(double));
	if (!input->most || !input->squares || (calibration->covariance && !input->covariance))
		return error_set(-ENOMEM, "no memory for statistics of %s", matrix->name);
	return 0;
}

static int name_add(struct calibration *calibration, const struct matrix *matrix)
{
	struct layer_name *name = &calibration->names[calibration->n_names];
	int r;

	if (calibration->n_names == calibration->n_most)
		return error_set(-EINVAL, "%s: more layers than config.json has", matrix->name);
	if (!matrix->shares_input) {
		r = input_add(calibration, matrix);
		if (r != 0)
			return r;
	}
	name->name = layer_name_new(matrix->name);
	if (!name->name)
		return error_set(-ENOMEM, "no memory for %s", matrix->name);
	name->input = calibration->n_inputs - 1;
	calibration->n_names++;
	return 0;
}

/* Up to KERNEL_ROWS rows of the covariance. */
static void covariance_job(void *data, size_t i)
{
	const struct calibration *calibration = data;
	const struct kernel *kernel = calibration->kernel;
	const struct input *input = calibration->current;
	size_t row = i * KERNEL_ROWS, tile = kernel->tile, n_cols = input->n_cols;
	unsigned int n_rows = n_cols - row < KERNEL_ROWS ? (unsigned int)(n_cols - row)
							 : KERNEL_ROWS;

	for (size_t j = row / tile * tile; j < n_cols; j += tile) {
		_Alignas(64) float sums[KERNEL_ROWS * KERNEL_MAX_TILE] = {0};

		kernel->block(calibration->columns + row * MATRIX_MAX_BATCH, MATRIX_MAX_BATCH,
			      calibration->tiles + j * MATRIX_MAX_BATCH, MATRIX_MAX_BATCH, sums,
			      KERNEL_MAX_TILE, n_rows);
		for (unsigned int r = 0; r < n_rows; r++)
			for (size_t k = 0; k < tile && j + k < n_cols; k++)
				input->covariance[(row + r) * n_cols + j + k] +=
					sums[r * KERNEL_MAX_TILE + k];
	}
}

static int reserve(struct calibration *calibration, size_t n_cols)
{
	size_t n = (n_cols + KERNEL_MAX_TILE) * MATRIX_MAX_BATCH;

	if (n_cols <= calibration->n_columns)
		return 0;
	array_free(calibration->columns);
	array_free(calibration->tiles);
	calibration->n_columns = 0;
	calibration->columns = array_new(n, sizeof(float));
	calibration->tiles = array_new(n, sizeof(float));
	if (!calibration->columns || !calibration->tiles)
		return error_set(-ENOMEM, "no memory for a batch of %zu columns", n_cols);
	calibration->n_columns = n_cols;
	return 0;
}

/* Adds x [n][columns]; tokens that a batch lacks count as zeros. */
static int add_covariance(struct calibration *calibration, struct input *input, const float *x,
			  size_t n)
{
	size_t tile = calibration->kernel->tile, n_cols = input->n_cols;
	int r = reserve(calibration, n_cols);

	if (r != 0)
		return r;
	for (size_t j = 0; j < (n_cols + tile - 1) / tile * tile; j++) {
		float *at = calibration->tiles + j / tile * tile * MATRIX_MAX_BATCH + j % tile;

		for (size_t b = 0; b < MATRIX_MAX_BATCH; b++) {
			float value = b < n && j < n_cols ? x[b * n_cols + j] : 0;

			calibration->columns[j * MATRIX_MAX_BATCH + b] = value;
			at[b * tile] = value;
		}
	}
	calibration->current = input;
	threads_run(calibration->threads, (n_cols + KERNEL_ROWS - 1) / KERNEL_ROWS, covariance_job,
		    calibration);
	return 0;
}

static int calibration_observe(struct observer *observer, const struct matrix *matrix,
			       const float *x, size_t n)
{
	struct calibration *calibration = (struct calibration *)observer;
	struct input *input;
	int r;

	if (!calibration->seen) {
		r = name_add(calibration, matrix);
		if (r != 0)
			return r;
	}
	if (matrix->shares_input)
		return 0;
	input = &calibration->inputs[calibration->next++];
	for (size_t b = 0; b < n; b++) {
		for (size_t i = 0; i < input->n_cols; i++) {
			float value = x[b * input->n_cols + i];

			if (!isfinite(value))
				return error_set(-EINVAL, "%s: input %zu is not finite for a token",
						 matrix->name, i);
			input->most[i] = fmaxf(input->most[i], fabsf(value));
			input->squares[i] += (double)value * value;
		}
	}
	input->n_tokens += n;
	return calibration->covariance ? add_covariance(calibration, input, x, n) : 0;
}

static int calibrate(struct calibration *calibration, struct transformer *transformer,
		     const uint16_t *ids, const struct options *options, size_t n_windows)
{
	for (uint32_t window = 0; window < options->windows; window++) {
		const uint16_t *start = ids + (size_t)window * n_windows / options->windows *
						      options->length;

		for (uint32_t at = 0; at < options->length; at += MATRIX_MAX_BATCH) {
			uint32_t left = options->length - at;
			uint32_t n = left < MATRIX_MAX_BATCH ? left : MATRIX_MAX_BATCH;
			struct token_at tokens[MATRIX_MAX_BATCH];
			const float *logits;
			int r;

			for (uint32_t i = 0; i < n; i++)
				tokens[i] = (struct token_at){start[at + i], 0, at + i};
			calibration->next = 0;
			r = transformer_feed(transformer, tokens, n, n, &logits);
			if (r != 0)
				return r;
			calibration->seen = true;
		}
	}
	return 0;
}

enum kind { KIND_MOST, KIND_SQUARES, KIND_COVARIANCE, N_KINDS };

static const char *const suffixes[] = {
	[KIND_MOST] = "", [KIND_SQUARES] = ".mean_square", [KIND_COVARIANCE] = ".covariance"};

static int header_add(json_t *header, const struct calibration *calibration,
		      const struct layer_name *layer, enum kind kind, uint64_t *offset)
{
	json_int_t n = (json_int_t)calibration->inputs[layer->input].n_cols;
	uint64_t start = *offset, end;
	char name[600];
	json_t *shape = kind == KIND_COVARIANCE ? json_pack("[II]", n, n) : json_pack("[I]", n);

	end = start + (uint64_t)n * (kind == KIND_COVARIANCE ? (uint64_t)n : 1) * sizeof(float);
	(void)snprintf(name, sizeof(name), "%s%s", layer->name, suffixes[kind]);
	if (json_object_set_new(header, name, json_pack("{ss so s[II]}", "dtype", "F32", "shape",
							shape, "data_offsets", (json_int_t)start,
							(json_int_t)end)) != 0)
		return error_set(-ENOMEM, "no memory for the header");
	*offset = end;
	return 0;
}

/* The header of the file; the data follow in the order of names, of each its kinds. */
static int header_new(const struct calibration *calibration, const struct options *options,
		      char **ret_text)
{
	json_t *header = json_object();
	char windows[16], length[16];
	uint64_t offset = 0;
	int r = 0;

	(void)snprintf(windows, sizeof(windows), "%u", options->windows);
	(void)snprintf(length, sizeof(length), "%u", options->length);
	if (json_object_set_new(header, "__metadata__",
				json_pack("{ss ss}", "windows", windows, "length", length)) != 0)
		r = error_set(-ENOMEM, "no memory for the header");
	for (size_t i = 0; r == 0 && i < calibration->n_names; i++)
		for (enum kind kind = 0; r == 0 && kind < N_KINDS; kind++)
			if (kind != KIND_COVARIANCE || calibration->covariance)
				r = header_add(header, calibration, &calibration->names[i], kind,
					       &offset);
	if (r == 0) {
		*ret_text = json_dumps(header, JSON_COMPACT);
		r = *ret_text ? 0 : error_set(-ENOMEM, "no memory for the header");
	}
	json_decref(header);
	return r;
}

static bool write_header(FILE *file, const char *text)
{
	size_t n = strlen(text), n_padded = (n + 7) / 8 * 8;
	uint64_t size = n_padded;

	return fwrite(&size, sizeof(size), 1, file) == 1 &&
	       fprintf(file, "%s%*s", text, (int)(n_padded - n), "") == (int)n_padded;
}

static bool write_input(FILE *file, const struct input *input, float *row)
{
	double n_tokens = (double)input->n_tokens;
	size_t n = input->n_cols;

	if (fwrite(input->most, sizeof(float), n, file) != n)
		return false;
	for (size_t i = 0; i < n; i++)
		row[i] = (float)(input->squares[i] / n_tokens);
	if (fwrite(row, sizeof(float), n, file) != n)
		return false;
	for (size_t i = 0; input->covariance && i < n; i++) {
		for (size_t j = 0; j < n; j++)
			row[j] = (float)(input->covariance[j < i ? j * n + i : i * n + j] /
					 n_tokens);
		if (fwrite(row, sizeof(float), n, file) != n)
			return false;
	}
	return true;
}

static bool write_all(FILE *file, const struct calibration *calibration, const char *text)
{
	size_t most = 1;
	float *row;
	bool ok;

	for (size_t i = 0; i < calibration->n_inputs; i++)
		if (calibration->inputs[i].n_cols > most)
			most = calibration->inputs[i].n_cols;
	row = array_new(most, sizeof(float));
	ok = row && write_header(file, text);
	for (size_t i = 0; ok && i < calibration->n_names; i++)
		ok = write_input(file, &calibration->inputs[calibration->names[i].input], row);
	array_free(row);
	return ok && fflush(file) == 0 && fsync(fileno(file)) == 0;
}

static int save(const struct calibration *calibration, const struct options *options)
{
	char path[PATH_MAX], *text = NULL;
	FILE *file;
	int r, fd;

	if (snprintf(path, sizeof(path), "%s.%ld.tmp", options->output, (long)getpid()) >=
	    (int)sizeof(path))
		return error_set(-ENAMETOOLONG, "%s: path too long", options->output);
	r = header_new(calibration, options, &text);
	if (r != 0)
		return r;
	fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	file = fd < 0 ? NULL : fdopen(fd, "wb");
	if (!file) {
		r = error_set(-errno, "%s: %s", path, strerror(errno));
		if (fd >= 0)
			(void)close(fd);
		free(text);
		return r;
	}
	errno = 0;
	if (!write_all(file, calibration, text))
		r = error_set(errno ? -errno : -EIO, "%s: %s", path, strerror(errno ? errno : EIO));
	free(text);
	if (fclose(file) != 0 && r == 0)
		r = error_set(-errno, "%s: %s", path, strerror(errno));
	if (r == 0 && rename(path, options->output) != 0)
		r = error_set(-errno, "%s: %s", options->output, strerror(errno));
	if (r != 0)
		(void)unlink(path);
	return r;
}

static int count_ids(const char *path, size_t *ret_n)
{
	struct stat status;

	if (stat(path, &status) != 0)
		return error_set(-errno, "%s: %s", path, strerror(errno));
	*ret_n = (size_t)status.st_size / sizeof(uint16_t);
	return 0;
}

static int run(struct session *session, const struct options *options)
{
	_cleanup_(cleanup_transformer) struct transformer *transformer = NULL;
	_cleanup_(cleanup_array) uint16_t *ids = NULL;
	struct calibration calibration;
	size_t n_ids = 0, n_windows;
	int r;

	r = count_ids(options->ids, &n_ids);
	if (r != 0)
		return r;
	n_windows = n_ids / options->length;
	if (n_windows < options->windows)
		return error_set(-ENODATA, "%s has %zu windows of %u ids; %u are wanted",
				 options->ids, n_windows, options->length, options->windows);
	r = ids_read(options->ids, n_windows * options->length, session->config.n_vocab, &ids);
	if (r == 0)
		r = transformer_new(&session->engine, &session->config, 1, options->length,
				    &transformer);
	if (r != 0)
		return r;
	r = calibration_init(&calibration, session, options->covariance);
	if (r == 0) {
		calibration.observer.observe = calibration_observe;
		session->engine.observer = &calibration.observer;
		r = calibrate(&calibration, transformer, ids, options, n_windows);
		session->engine.observer = NULL;
	}
	if (r == 0)
		r = save(&calibration, options);
	if (r == 0)
		printf("%zu layers, %zu inputs, %u windows of %u tokens\n", calibration.n_names,
		       calibration.n_inputs, options->windows, options->length);
	calibration_deinit(&calibration);
	return r;
}

int verb_calibrate(const struct options *options)
{
	struct session session;
	int r;

	if (!options->ids || !options->output)
		return error_set(-EINVAL, "calibrate needs --ids FILE.u16 and -o STATS.safetensors");
	if (options->windows == 0 || options->length == 0)
		return error_set(-EINVAL, "--windows and --length must be at least 1");
	r = session_open(options, &session);
	if (r != 0)
		return r;
	r = run(&session, options);
	session_close(&session);
	return r;
}
